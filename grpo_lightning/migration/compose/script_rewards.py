"""The names that TRL's and open-r1's scripts give to rewards: what is the same here, what differs, and what to write."""

from __future__ import annotations

from typing import Any

TRL_REWARDS: dict[str, Any] = {
    "accuracy_reward": {
        "class_path": "grpo_lightning.rewards.AccuracyReward",
        "init_args": {"mode": "math", "answer_key": "solution"},
    },
    "think_format_reward": {
        "class_path": "grpo_lightning.rewards.FormatReward",
        "init_args": {"pattern": r"<think>(?!.*<think>)(.*?)</think>.*"},
    },
    "get_soft_overlong_punishment": {
        "class_path": "grpo_lightning.rewards.LengthReward",
        "init_args": {"shape": "soft_overlong", "max_length": 1280, "cache_length": 256},
    },
}
"""TRL's own rewards by the names its script knows."""

TAGS = r"(?m)\A<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>$"
FENCED = r"(?m)\A<think>\n.*?\n</think>\n<answer>\n.*?```{language}.*?```.*?\n</answer>$"
_CODE = "it runs programs against verification_info at a provider. Ours is code_execution, with tests in a column of another form (docs/rewards.md)"

OPEN_R1_LACKING: dict[str, str] = {
    "tag_count": "a quarter for each of four tags with its line breaks; format is all or nothing, so it is no substitute. "
    "Write it as a function of yours and name that by import path",
    "reasoning_steps": "it counts words such as First, and Step 1:. Write it as a function of yours",
    "cosine": "it counts characters, not tokens, and grades as its accuracy does. Nearest: LengthReward with shape: cosine",
    "length": "it compares the lengths of all completions of a batch, right ones against wrong ones (Kimi 1.5); our length is "
    "another reward. Write it as a function of yours",
    "code": _CODE,
    "binary_code": _CODE,
    "ioi_code": _CODE,
    "cf_code": _CODE,
}
"""open-r1's name -> what it does that nothing here does."""


def open_r1_reward(name: str, settings: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
    """What computes one of open-r1's rewards here, and how it differs; None where nothing does.

    Args:
        name: As its script knows it.
        settings: Of the config: some rewards have arguments there.

    Example:
        >>> reward, differs = open_r1_reward("soft_overlong_punishment", {"soft_punish_cache": 100})
        >>> reward["init_args"]["cache_length"], differs
        (100, 'the same')
    """
    rewards = "grpo_lightning.rewards"
    limits = {
        "max_length": settings.get("max_completion_len", 16384),
        "cache_length": settings.get("soft_punish_cache", 4096),
    }
    repeats = {
        "ngram_size": settings.get("repetition_n_grams", 3),
        "max_penalty": settings.get("repetition_max_penalty", -1.0),
    }
    found: dict[str, tuple[str, dict[str, Any], str]] = {
        "accuracy": (
            "AccuracyReward",
            {"mode": "math", "answer_key": "solution"},
            "it grades the first boxed or LaTeX answer with math-verify; ours the final answer, also without LaTeX",
        ),
        "format": ("RegexReward", {"pattern": TAGS}, "the same pattern; ours of this name asks for no line breaks"),
        "code_format": (
            "RegexReward",
            {"pattern": FENCED.format(language=settings.get("code_language", "python"))},
            "the same pattern, but for rows with a column language of their own",
        ),
        "soft_overlong_punishment": ("LengthReward", {"shape": "soft_overlong", **limits}, "the same"),
        "repetition_penalty": ("RepetitionReward", repeats, "the same"),
    }
    if name not in found:
        return None
    kind, arguments, differs = found[name]
    return {"class_path": f"{rewards}.{kind}", "init_args": {"name": name, **arguments}}, differs
