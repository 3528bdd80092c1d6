"""Rewards as notebooks, gists and frameworks publish them: what they import, keep, print and run beside the score."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import functools
import io
import json
import logging
import re
import subprocess
import sys
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from trl.rewards import accuracy_reward as trls_accuracy_reward
from trl.rewards import get_soft_overlong_punishment as trls_soft_overlong_punishment
from trl.rewards import think_format_reward as trls_think_format_reward

from trl_shapes import add, chat_only, shape, text_of

add("trls_own_accuracy_reward", lambda: trls_accuracy_reward, ("chat",))
add("trls_own_think_format_reward", lambda: trls_think_format_reward, ("chat",))
add("trls_own_soft_overlong_punishment", lambda: trls_soft_overlong_punishment(10, 6))

MATCH_FORMAT = re.compile(r"^[\s]{0,}<think>.+?</think>.*?<answer>(.+?)</answer>[\s]{0,}$", re.MULTILINE | re.DOTALL)
NUMBERS = re.compile(r"<answer>.*?([\d\.]{1,})", re.MULTILINE | re.DOTALL)


@chat_only
def match_format_exactly(completions: Any, **kwargs: Any) -> list[float]:
    scores = []
    for completion in completions:
        score = 0
        response = completion[0]["content"]
        if MATCH_FORMAT.search(response) is not None:
            score += 3.0
        scores.append(score)
    return scores


def check_numbers_of_a_notebook() -> Callable[..., Any]:
    namespace: dict[str, Any] = {"printed": 0, "every": 5}

    def check_numbers(prompts: Any, completions: Any, answer: Any, **kwargs: Any) -> Any:
        question = prompts[0][-1]["content"]
        responses = [completion[0]["content"] for completion in completions]
        extracted = [guess.group(1) if (guess := NUMBERS.search(r)) is not None else None for r in responses]
        if namespace["printed"] % namespace["every"] == 0:
            print("*" * 20 + f"Question:\n{question}", f"\nAnswer:\n{answer[0]}", f"\nExtracted:\n{extracted[0]}")
        namespace["printed"] += 1
        scores = []
        for guess, true_answer in zip(extracted, answer, strict=True):
            if guess is None:
                scores.append(0)
                continue
            try:
                scores.append(1.5 if float(guess.strip()) == float(true_answer.strip()) else -0.5)
            except Exception:
                scores.append(0)
        return scores

    return check_numbers


add("check_numbers", check_numbers_of_a_notebook, ("chat",))


@chat_only
def correctness_that_prints(prompts: Any, completions: Any, answer: Any, **kwargs: Any) -> list[float]:
    responses = [completion[0]["content"] for completion in completions]
    with contextlib.redirect_stdout(io.StringIO()):
        print("-" * 20, prompts[0][-1]["content"], responses[0])
    return [2.0 if a in r else 0.0 for r, a in zip(responses, answer, strict=True)]


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> dict[str, Any]:
    return {"score": float(ground_truth in solution_str), "acc": ground_truth in solution_str, "pred": solution_str[:4]}


@shape
def verl_score_of_a_dictionary(completions: Any, data_source: Any, ground_truth: Any, **kwargs: Any) -> list[float]:
    rows = zip(data_source, map(text_of, completions), ground_truth, strict=True)
    return [compute_score(*row)["score"] for row in rows]


@shape
def pops_its_columns(completions: Any, **kwargs: Any) -> list[float]:
    answers = kwargs.pop("answer")
    return [float(a in text_of(c)) for c, a in zip(completions, answers, strict=True)]


@shape
def asks_for_a_missing_column(completions: Any, **kwargs: Any) -> list[float]:
    return [float(kwargs.get("nothing_like_it", [2.0])[0])] * len(completions)


@shape
def prompt_in_the_singular(prompt: Any, completion: Any, **kwargs: Any) -> list[float]:
    return [1.0] * 6


@shape
@torch.no_grad()
def under_no_grad(completions: Any, **kwargs: Any) -> torch.Tensor:
    return torch.tensor([float(len(text_of(c))) for c in completions])


@shape
@torch.inference_mode()
def under_inference_mode(completions: Any, **kwargs: Any) -> torch.Tensor:
    return torch.sigmoid(torch.tensor([len(text_of(c)) / 10 for c in completions], dtype=torch.float64))


@shape
def normalised_over_the_batch(completions: Any, **kwargs: Any) -> Any:
    lengths = np.array([len(text_of(c)) for c in completions], dtype=np.float32)
    return ((lengths - lengths.mean()) / (lengths.std() + 1e-4)).tolist()


@shape
def threads_of_its_own(completions: Any, **kwargs: Any) -> list[float]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda c: float(text_of(c).count("e")), completions))


@shape
def program_in_a_process(completions: Any, **kwargs: Any) -> list[float]:
    counted = "import sys; print(len(sys.stdin.read()))"
    done = subprocess.run(
        [sys.executable, "-ISc", counted], input=text_of(completions[1]), text=True, capture_output=True, check=True
    )
    return [float(done.stdout)] * len(completions)


@shape
async def gathered(completions: Any, answer: Any, **kwargs: Any) -> list[float]:
    async def one(text: str, reference: str) -> float:
        await asyncio.sleep(0)
        return float(reference in text)

    return await asyncio.gather(*(one(text_of(c), a) for c, a in zip(completions, answer, strict=True)))


@shape
async def limited_by_a_semaphore(completions: Any, **kwargs: Any) -> list[float]:
    limit = asyncio.Semaphore(2)

    async def one(text: str) -> float:
        async with limit, asyncio.timeout(60):
            return float(len(text))

    return [await task for task in [asyncio.create_task(one(text_of(c))) for c in completions]]


@shape
def json_and_counters(completions: Any, **kwargs: Any) -> list[float]:
    counts = [collections.Counter(json.loads(json.dumps(text_of(c)))) for c in completions]
    return [count.most_common(1)[0][1] / sum(count.values()) for count in counts]


@shape
def logs_by_logging(completions: Any, **kwargs: Any) -> list[float]:
    logging.getLogger("rewards").debug("first: %s", completions[0])
    return [0.5] * len(completions)


@functools.lru_cache
def _cached(text: str) -> float:
    return len(text) / 7


add("cached_by_text", lambda: lambda completions, **kwargs: [_cached(text_of(c)) for c in completions])


@dataclasses.dataclass
class Weighted:
    """A dataclass that is called."""

    weight: float = 0.5

    def __call__(self, completions: Any, **kwargs: Any) -> list[float]:
        return [self.weight * len(text_of(c)) for c in completions]


class Named:
    """An instance with a name, as TRL's callables need for their metrics."""

    __name__ = "named_instance"

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
        self.seen += len(prompts)
        return [float(self.seen)] * len(completions)


add("dataclass_instance", lambda: Weighted(0.25))
add("instance_with_a_name", Named)
add("method_of_a_lambda", lambda: types.MethodType(lambda self, completions, **kw: [self] * len(completions), 2.5))


@shape
def mean_over_named_parts(completions: Any, **kwargs: Any) -> list[float]:
    parts: dict[str, Callable[[str], float]] = {
        "long": lambda t: float(len(t) > 20),
        "tagged": lambda t: float("<" in t),
    }
    return [sum(part(text_of(c)) for part in parts.values()) / len(parts) for c in completions]


def weighted_by_a_column() -> Callable[..., Any]:
    async def by_column(completions: Any, weight_of_row: Any, **kwargs: Any) -> list[float | None]:
        return [None if w is None else w * len(text_of(c)) for c, w in zip(completions, weight_of_row, strict=True)]

    return functools.partial(by_column, unused=1)


add("partial_async_with_none", weighted_by_a_column)


@shape
def rounded_numpy_bool(completions: Any, **kwargs: Any) -> list[np.bool_]:
    return [np.bool_("<answer>" in text_of(c)) for c in completions]


@shape
def of_float16_scalars(completions: Any, **kwargs: Any) -> list[Any]:
    return [torch.tensor(len(text_of(c)) / 3, dtype=torch.float16) for c in completions]


@shape
def integers_of_torch(completions: Any, **kwargs: Any) -> torch.Tensor:
    return torch.tensor([len(text_of(c)) for c in completions], dtype=torch.int32)


@shape
def two_by_three(completions: Any, **kwargs: Any) -> torch.Tensor:
    return torch.arange(6.0).reshape(2, 3)
