"""Rewards of further tasks that people train: retrieval, extraction, text alike to a reference, programs, puzzles, poems."""

from __future__ import annotations

import ast
import asyncio
import difflib
import functools
import json
import math
import multiprocessing
import os
import random
import re
import tempfile
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from decimal import Decimal, InvalidOperation
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import sympy
import torch

from trl_shapes import add, chat_only, shape, text_of


@shape
def reciprocal_rank(completions: Any, answer: list[str], **kwargs: Any) -> list[float]:
    listed = [[item.strip() for item in re.split(r"[,\s]+", text_of(c)) if item.strip()] for c in completions]
    return [1.0 / (1 + items.index(a)) if a in items else 0.0 for items, a in zip(listed, answer, strict=True)]


@shape
def overlap_of_words(completions: Any, ground_truth: list[str], **kwargs: Any) -> list[float]:
    scores = []
    for completion, truth in zip(completions, ground_truth, strict=True):
        said, wanted = Counter(re.findall(r"\w+", text_of(completion).lower())), Counter(re.findall(r"\w+", truth))
        common = sum((said & wanted).values())
        precision, recall = common / max(1, sum(said.values())), common / max(1, sum(wanted.values()))
        scores.append(2 * precision * recall / (precision + recall) if common else 0)
    return scores


@shape
def alike_to_the_solution(completions: Any, solution: list[str], **_: Any) -> list[float]:
    return [difflib.SequenceMatcher(None, text_of(c), s).ratio() for c, s in zip(completions, solution, strict=True)]


@functools.cache
def _distance(one: str, other: str) -> int:
    if not one or not other:
        return len(one) + len(other)
    if one[0] == other[0]:
        return _distance(one[1:], other[1:])
    return 1 + min(_distance(one[1:], other), _distance(one, other[1:]), _distance(one[1:], other[1:]))


@shape
def edit_distance(completions: Any, **kwargs: Any) -> list[int]:
    return [-_distance(text_of(c)[-12:], a) for c, a in zip(completions, kwargs["answer"], strict=True)]


@shape
def fields_of_json(completions: Any, reward_model: list[dict], **kwargs: Any) -> list[float]:
    scores = []
    for completion, spec in zip(completions, reward_model, strict=True):
        try:
            found = json.loads(re.search(r"\{.*\}", text_of(completion), re.DOTALL).group(0))  # type: ignore[union-attr]
        except (AttributeError, json.JSONDecodeError):
            scores.append(-1.0)
            continue
        scores.append(sum(key in found for key in spec) / len(spec))
    return scores


@shape
def program_that_defines_something(completions: Any, **kwargs: Any) -> list[float]:
    scores = []
    for completion in completions:
        fenced = re.findall(r"```(?:python)?\n(.*?)```", text_of(completion), re.DOTALL)
        try:
            tree = ast.parse(fenced[0] if fenced else "")
        except SyntaxError:
            scores.append(-2.0)
            continue
        scores.append(1.0 if any(isinstance(node, ast.Call) for node in ast.walk(tree)) else -0.5)
    return scores


@shape
def columns_by_zip_of_kwargs(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
    wanted = [key for key in kwargs if key in ("answer", "target", "data_source")]
    rows = [dict(zip(wanted, row, strict=True)) for row in zip(*(kwargs[key] for key in wanted), strict=True)]
    return [float(row["answer"] in text_of(c)) + 0.1 * len(row) for row, c in zip(rows, completions, strict=True)]


@shape
def positional_only(prompts: Any, completions: Any, /, **kwargs: Any) -> list[float]:
    return [float(len(text_of(completion))) for completion in completions]


class Rubric:
    """Scores kept in a class."""

    points: ClassVar[dict[str, float]] = {"<think>": 0.25, "<answer>": 0.25, "\\boxed": 0.5}

    @classmethod
    def by_class(cls, completions: Any, **kwargs: Any) -> list[float]:
        return [sum(value for mark, value in cls.points.items() if mark in text_of(c)) for c in completions]

    @staticmethod
    def by_nobody(completions: Any, **kwargs: Any) -> list[float]:
        return [min(1.0, len(text_of(c).split()) / 10) for c in completions]

    def by_itself(self, completions: Any, answer: list[str], **kwargs: Any) -> list[float]:
        return [float(text_of(c).count(a)) for c, a in zip(completions, answer, strict=True)]


add("rubric_of_a_class", lambda: Rubric.by_class)
add("rubric_of_nobody", lambda: Rubric.by_nobody)
add("rubric_of_an_instance", lambda: Rubric().by_itself)


@shape
def bell_around_a_length(completions: Any, **kwargs: Any) -> np.ndarray:
    lengths = np.array([len(text_of(completion)) for completion in completions])
    return np.clip(np.exp(-(((lengths - 40) / 20) ** 2)), 0.01, 1)


@shape
def series_of_pandas(prompts: Any, completions: Any, **kwargs: Any) -> pd.Series:
    table = pd.DataFrame({"prompt": [str(p) for p in prompts], "length": [len(text_of(c)) for c in completions]})
    return table["length"] - table.groupby("prompt")["length"].transform("mean")


@shape
def with_a_gradient(completions: Any, **kwargs: Any) -> torch.Tensor:
    return torch.nn.Parameter(torch.tensor([float(len(text_of(completion))) for completion in completions])) * 2


@shape
def numbers_as_text(completions: Any, **kwargs: Any) -> list[str]:
    return [f"{len(text_of(completion))}.0" for completion in completions]


@shape
def array_with_nan(completions: Any, answer: list[str], **kwargs: Any) -> np.ndarray:
    found = [re.search(r"-?[0-9.]+", text_of(completion)) for completion in completions]
    return np.array(
        [np.nan if match is None else float(match[0].rstrip(".") or 0) for match in found], dtype=np.float32
    )


@shape
def logs_a_sample_into_a_file(prompts: Any, completions: Any, answer: list[str], **kwargs: Any) -> list[float]:
    path = os.path.join(tempfile.gettempdir(), "completion_samples")
    os.makedirs(path, exist_ok=True)
    scores = []
    for completion, prompt, wanted in zip(completions, prompts, answer, strict=True):
        if random.random() < 0.5:
            with open(os.path.join(path, f"{os.getpid()}.txt"), "a") as file:
                file.write(f"\n\n==============\n{prompt}{text_of(completion)}")
        scores.append(1.0 if wanted in text_of(completion) else 0.0)
    return scores


@shape
def decimals_compared(completions: Any, target: list[int], **kwargs: Any) -> list[float | None]:
    scores: list[float | None] = []
    for completion, wanted in zip(completions, target, strict=True):
        match = re.search(r"<answer>\s*(.*?)\s*</answer>", text_of(completion), re.DOTALL)
        try:
            scores.append(None if match is None else float(Decimal(match.group(1)) == Decimal(wanted)))
        except InvalidOperation:
            scores.append(-1.0)
    return scores


@shape
def symbolic_difference(completions: Any, nums: list[list[int]], **kwargs: Any) -> list[float]:
    x = sympy.Symbol("x")
    roots = [sympy.solve(x**2 - sum(pair) * x + pair[0] * pair[1], x) for pair in nums]
    return [float(any(str(root) in text_of(c) for root in two)) for two, c in zip(roots, completions, strict=True)]


@shape
async def judged_in_threads_with_a_limit(completions: Any, **kwargs: Any) -> list[float]:
    async def one(completion: Any) -> float:
        try:
            return await asyncio.wait_for(asyncio.to_thread(lambda: float(len(text_of(completion)))), timeout=5)
        except TimeoutError:
            return 0.0

    return list(await asyncio.gather(*map(one, completions)))


def _vowels(text: str) -> float:
    return sum(char in "aeiou" for char in text) / max(1, len(text))


@chat_only
def pool_of_processes(completions: Any, **kwargs: Any) -> list[float]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(_vowels, [completion[-1]["content"] for completion in completions]))


@shape
def thread_with_a_limit(completions: Any, **kwargs: Any) -> list[float]:
    scores = [0.0] * len(completions)

    def work(place: int, text: str) -> None:
        scores[place] = float(len(re.findall(r"[a-z]+", text)))

    for place, completion in enumerate(completions):
        thread = threading.Thread(target=work, args=(place, text_of(completion)))
        thread.start()
        thread.join(timeout=5)
    return scores


def retried(times: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            for attempt in range(times):
                try:
                    return function(*args, attempt=attempt, **kwargs)
                except ConnectionError:
                    continue
            return [0.0] * len(kwargs["completions"])

        return wrapper

    return decorate


@shape
@retried(3)
def judge_that_answers_at_the_second_call(completions: Any, attempt: int = 0, **kwargs: Any) -> list[float]:
    if not attempt:
        raise ConnectionError("busy")
    return [float(attempt + len(text_of(completion))) for completion in completions]


@shape
def diversity_of_ngrams(completions: Any, **kwargs: Any) -> list[float]:
    def share(words: list[str], n: int = 2) -> float:
        grams = list(zip(*(words[i:] for i in range(n)), strict=False))
        return len(set(grams)) / len(grams) if grams else 1.0

    return [math.log1p(share(text_of(completion).split())) for completion in completions]


@chat_only
def turns_of_the_assistant(prompts: Any, completions: Any, **kwargs: Any) -> list[int]:
    asked = [turns[-1]["content"] for turns in prompts]
    said = [" ".join(m["content"] for m in turns if m.get("role") == "assistant") for turns in completions]
    return [len(set(one.split()) & set(other.split())) for one, other in zip(asked, said, strict=True)]


@shape
def letters_of_a_script(completions: Any, language: list[str], **kwargs: Any) -> list[float]:
    names = [[unicodedata.name(char, "") for char in text_of(c) if char.isalpha()] for c in completions]
    return [sum(name.startswith("LATIN") for name in of_one) / max(1, len(of_one)) for of_one in names]
