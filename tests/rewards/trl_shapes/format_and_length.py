"""Rewards of format, length and repetition, with the factories that make them."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable
from typing import Any

from trl_shapes import EOS, add, chat_only, shape, text_of


@shape
def format_reward(completions: Any, **kwargs: Any) -> list[float]:
    pattern = r"^<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>$"
    matches = [re.match(pattern, text_of(c), re.DOTALL | re.MULTILINE) for c in completions]
    return [1.0 if match else 0.0 for match in matches]


@shape
def tag_count_reward(completions: Any, **kwargs: Any) -> list[float]:
    tags = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")
    return [sum(0.25 for tag in tags if text_of(c).count(tag) == 1) for c in completions]


@shape
def reasoning_steps_reward(completions: Any, **kwargs: Any) -> list[float]:
    pattern = r"(Step \d+:|^\d+\.|\n-|\n\*|First,|Second,|Next,|Finally,)"
    return [min(1.0, len(re.findall(pattern, text_of(c))) / 3) for c in completions]


@chat_only
def strict_format_reward_func(completions: Any, **kwargs: Any) -> list[float]:
    pattern = r"^<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\n$"
    return [0.5 if re.match(pattern, c[0]["content"]) else 0.0 for c in completions]


@chat_only
def soft_format_reward_func(completions: Any, **kwargs: Any) -> list[float]:
    pattern = r"<reasoning>.*?</reasoning>\s*<answer>.*?</answer>"
    return [0.5 if re.match(pattern, c[0]["content"], re.DOTALL) else 0.0 for c in completions]


def count_xml(text: str) -> float:
    count = 0.125 * (text.count("<reasoning>\n") == 1) + 0.125 * (text.count("\n</reasoning>\n") == 1)
    if text.count("\n</answer>\n") == 1:
        count += 0.125 - len(text.split("\n</answer>\n")[-1]) * 0.001
    return count


@shape
def xmlcount_reward_func(completions: Any, **kwargs: Any) -> list[float]:
    return [count_xml(text_of(c)) for c in completions]


@shape
def match_format_approximately(completions: Any, **kwargs: Any) -> list[float]:
    return [sum(0.5 if text_of(c).count(t) == 1 else -1.0 for t in ("<think>", "</think>")) for c in completions]


@shape
def len_reward(completions: Any, solution: list[str], **kwargs: Any) -> list[float]:
    contents = [text_of(c) for c in completions]
    right = [s.strip("$") in c for c, s in zip(contents, solution, strict=True)]
    lengths = [len(content) for content in contents]
    shortest, longest = min(lengths), max(lengths)
    if longest == shortest:
        return [0.0] * len(completions)
    lambdas = [0.5 - (length - shortest) / (longest - shortest) for length in lengths]
    return [value if is_right else min(0, value) for value, is_right in zip(lambdas, right, strict=True)]


def get_cosine_scaled_reward(low: float = -1.0, high: float = 1.0, max_len: int = 100) -> Callable[..., Any]:
    def cosine_scaled_reward(completions: Any, solution: list[str], **kwargs: Any) -> list[float]:
        rewards = []
        for completion, sol in zip(completions, solution, strict=True):
            content = text_of(completion)
            cosine = math.cos(len(content) / max_len * math.pi)
            start, end = (high, 0.5) if sol.strip("$") in content else (low, -0.5)
            rewards.append(float(end + 0.5 * (start - end) * (1.0 + cosine)))
        return rewards

    return cosine_scaled_reward


add("get_cosine_scaled_reward", get_cosine_scaled_reward)
add("get_cosine_scaled_reward_with_settings", lambda: get_cosine_scaled_reward(low=-10.0, max_len=40))


def get_repetition_penalty_reward(ngram_size: int = 2, max_penalty: float = -1.0) -> Callable[..., Any]:
    if max_penalty > 0:
        raise ValueError("max_penalty should not be positive")

    def zipngram(text: str) -> Any:
        words = text.lower().split()
        return zip(*[words[i:] for i in range(ngram_size)], strict=False)

    def repetition_penalty_reward(completions: Any, *args: Any, **kwargs: Any) -> list[float]:
        rewards = []
        for text in map(text_of, completions):
            grams = list(zipngram(text))
            rewards.append((1 - len(set(grams)) / len(grams)) * max_penalty if grams else 0.0)
        return rewards

    return repetition_penalty_reward


add("get_repetition_penalty_reward", get_repetition_penalty_reward)


def get_code_format_reward(language: str = "python") -> Callable[..., Any]:
    def code_format_reward(completions: Any, **kwargs: Any) -> list[float]:
        languages = kwargs.get("language") or [language] * len(completions)
        found = [
            re.search(rf"```{lang}\n.*?```", text_of(c), re.DOTALL)
            for c, lang in zip(completions, languages, strict=True)
        ]
        return [1.0 if match else 0.0 for match in found]

    return code_format_reward


add("get_code_format_reward", get_code_format_reward)


def get_soft_overlong_punishment(max_completion_len: int, soft_punish_cache: int) -> Callable[..., Any]:
    def soft_overlong_punishment_reward(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        rewards = []
        for ids in completion_ids:
            over = len(ids) - (max_completion_len - soft_punish_cache)
            rewards.append(0.0 if over <= 0 else -1.0 if len(ids) > max_completion_len else -over / soft_punish_cache)
        return rewards

    return soft_overlong_punishment_reward


add("get_soft_overlong_punishment", lambda: get_soft_overlong_punishment(10, 6))


@shape
def reward_unique_letters(completions: Any, **kwargs: Any) -> list[int]:
    return [len(set(text_of(c))) for c in completions]


@shape
def reward_close_to_20_tokens(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [-abs(20 - len(ids)) for ids in completion_ids]


@shape
def reward_of_an_ended_completion(completion_ids: list[list[int]], **kwargs: Any) -> list[bool]:
    return [ids[-1] == EOS for ids in completion_ids]


@shape
def reward_for_one_task_only(
    prompts: Any, completions: Any, data_source: list[str], **kwargs: Any
) -> list[float | None]:
    return [float(len(text_of(c))) if s == "math" else None for c, s in zip(completions, data_source, strict=True)]


@shape
async def async_judge(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
    async def judged(text: str) -> float:
        await asyncio.sleep(0)
        return len(text) / 100

    return await asyncio.gather(*(judged(text_of(c)) for c in completions))


@shape
def code_reward_with_a_loop_of_its_own(completions: Any, **kwargs: Any) -> list[float]:
    async def run(text: str) -> float:
        return float("```" in text)

    async def run_all() -> list[float]:
        return await asyncio.gather(*(run(text_of(c)) for c in completions))

    return asyncio.run(run_all())


@shape
def zh_ratio_reward(completions: Any, **kwargs: Any) -> list[float]:
    return [sum("一" <= ch <= "鿿" for ch in text_of(c)) / max(1, len(text_of(c))) for c in completions]
