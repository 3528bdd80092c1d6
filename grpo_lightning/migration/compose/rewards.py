"""reward_funcs and their weights. A bare name belongs to the script it was written for, never to one of ours of that name."""

from __future__ import annotations

from typing import Any

from grpo_lightning.migration.migration import Migration

KEY = "reward_funcs"
ARGUMENTS = {
    "max_completion_len": "soft_overlong_punishment",
    "soft_punish_cache": "soft_overlong_punishment",
    "repetition_n_grams": "repetition_penalty",
    "repetition_max_penalty": "repetition_penalty",
}
"""Setting of open-r1's script -> the reward that it belongs to."""


def compose_rewards(m: Migration) -> None:
    """Comma-separated names or a list; a reward that is left out takes its weight with it."""
    names = split(m.get(KEY))
    placed = [_reward(m, str(name)) for name in names]
    kept = [reward for reward in placed if reward is not None]
    if kept:
        m.put("model.rewards", kept, KEY)
    m.needs_nothing(KEY)
    if m.get("reward_model_name_or_path"):
        m.refuse(
            "reward_model_name_or_path",
            "Write the model as one of model.rewards: {class_path: reward_model, init_args: {model: ...}} (docs/rewards.md).",
        )
    m.needs_nothing("reward_model_name_or_path")
    _weights(m, [str(name) for name in names], [reward is not None for reward in placed])
    for key, reward in ARGUMENTS.items():
        if reward in names:
            m.put("model.rewards", kept, key)
        else:
            m.refuse(key, f"It belongs to open-r1's reward {reward}, which is not in use.")


def _reward(m: Migration, name: str) -> Any:
    """What goes into model.rewards; None, with the reason, where nothing does."""
    if m.is_grpo_arguments or "." in name or ":" in name:
        return name
    if name in TRL_REWARDS:
        return TRL_REWARDS[name]
    if name == "reasoning_accuracy_reward":
        m.refuse(KEY, f"{name} reads the answer behind </think>: write AccuracyReward and its setting extraction.")
        return None
    known = open_r1_reward(name, m.source)
    if known is not None:
        reward, differs = known
        short = reward["class_path"].rpartition(".")[2]
        m.refuse(
            KEY, f"{name} is taken for open-r1's, not for one of ours of that name; written as {short}: {differs}."
        )
        return reward
    if name in OPEN_R1_LACKING:
        m.refuse(KEY, f"{name} (open-r1) is left out, with its weight: {OPEN_R1_LACKING[name]}.")
        return None
    m.refuse(
        KEY,
        f"{name} is left out, with its weight: a function of the script, which this config does not have. Name it by import "
        f"path (my_module.{name}); if ours of that name is meant, write it into model.rewards.",
    )
    return None


def _weights(m: Migration, names: list[str], kept: list[bool]) -> None:
    weights = [float(weight) for weight in split(m.get("reward_weights"))]
    if len(weights) == len(names):
        left = [weight for weight, is_kept in zip(weights, kept, strict=True) if is_kept]
        if left:
            m.put("model.reward_weights", left, "reward_weights")
        if len(left) < len(weights):
            gone = ", ".join(name for name, is_kept in zip(names, kept, strict=True) if not is_kept)
            m.refuse("reward_weights", f"Without those of {gone}, which are left out.")
    elif weights and not names:
        m.put("model.reward_weights", weights, "reward_weights")
    elif weights:
        m.refuse("reward_weights", f"{len(weights)} weights for {len(names)} rewards; TRL refuses that too.")
    m.needs_nothing("reward_weights")


def split(value: Any) -> list[Any]:
    """``"a, b"``, ``["a", "b"]`` or ``["a,b"]`` as a list."""
    if value is None:
        return []
    if isinstance(value, str):
        return [part.strip() for part in value.strip("[]").split(",") if part.strip()]
    return [part for one in value for part in split(one)] if isinstance(value, list | tuple) else [value]


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
