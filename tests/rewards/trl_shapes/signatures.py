"""Signatures of every kind: how a reward says what it wants."""

from __future__ import annotations

import functools
import random
import sqlite3
from collections.abc import Callable
from typing import Any

from trl_shapes import add, shape, text_of


@shape
def everything_by_kwargs(**kwargs: Any) -> list[float]:
    return [float(len(text_of(c)) > len(a)) for c, a in zip(kwargs["completions"], kwargs["answer"], strict=True)]


@shape
def names_in_kwargs(**kwargs: Any) -> list[float]:
    return [float(len(name)) for name in sorted(kwargs)[: len(kwargs["completions"])]]


@shape
def characters_of_all_columns(prompts: Any, completions: Any, **columns: Any) -> list[int]:
    lists = [column for column in columns.values() if isinstance(column, list)]
    return [sum(len(str(column[row])) for column in lists) for row in range(len(completions))]


@shape
def keyword_only(*, completions: Any, answer: list[str], **kwargs: Any) -> list[float]:
    return [float(a in text_of(c)) for c, a in zip(completions, answer, strict=True)]


@shape
def positional_names_in_another_order(completion_ids: Any, completions: Any, prompts: Any, **_: Any) -> list[float]:
    return [len(ids) + len(text_of(c)) + 0.5 for ids, c, _p in zip(completion_ids, completions, prompts, strict=True)]


@shape
def without_kwargs(completions: Any, answer: list[str]) -> list[float]:
    return [float(a in text_of(c)) for c, a in zip(completions, answer, strict=True)]


@shape
def exactly_what_trl_passes(
    prompts: Any,
    completions: Any,
    completion_ids: Any,
    trainer_state: Any,
    log_extra: Any,
    log_metric: Any,
    answer: Any,
    solution: Any,
    ground_truth: Any,
    target: Any,
    nums: Any,
    data_source: Any,
    reward_model: Any,
    language: Any,
    weight_of_row: Any,
) -> list[float]:
    return [float(len(n)) for n in nums]


@shape
def optional_column(completions: Any, difficulty: list[float] | None = None, **kwargs: Any) -> list[float]:
    return [1.0] * len(completions) if difficulty is None else difficulty


@shape
def varargs_and_kwargs(*args: Any, **kwargs: Any) -> list[float]:
    return [float(len(args) + ("answer" in kwargs))] * len(kwargs["completions"])


def scaled(completions: Any, scale: float, **kwargs: Any) -> list[float]:
    return [scale * len(text_of(c)) for c in completions]


add("partial", lambda: functools.partial(scaled, scale=0.5))
add("partial_of_partial", lambda: functools.partial(functools.partial(scaled, scale=0.5), scale=2.0))
add("lambda", lambda: lambda completions, **kwargs: [float(len(text_of(c))) for c in completions])
add("lambda_over_kwargs", lambda: lambda **kwargs: [1.0 for _ in kwargs["prompts"]])


async def scaled_async(completions: Any, scale: float, **kwargs: Any) -> list[float]:
    return scaled(completions, scale)


add("partial_of_async", lambda: functools.partial(scaled_async, scale=0.25))


class Judge:
    """Rewards in the forms that classes give."""

    threshold = 30

    def __init__(self, bonus: float = 0.0) -> None:
        self.bonus, self.__name__ = bonus, "judge"

    def __call__(self, prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
        return [self.bonus + float(len(text_of(c)) > self.threshold) for c in completions]

    @classmethod
    def of_class(cls, completions: Any, **kwargs: Any) -> list[float]:
        return [float(len(text_of(c)) > cls.threshold) for c in completions]

    @staticmethod
    def static(completions: Any, **kwargs: Any) -> list[float]:
        return [float("answer" in text_of(c)) for c in completions]

    def method(self, completions: Any, **kwargs: Any) -> list[float]:
        return self(None, completions)


class AsyncJudge:
    async def __call__(self, completions: Any, **kwargs: Any) -> list[float]:
        return [float(len(text_of(c))) for c in completions]


add("callable_instance", lambda: Judge(0.5))
add("bound_method", lambda: Judge(1.5).method)
add("classmethod", lambda: Judge.of_class)
add("staticmethod", lambda: Judge.static)
add("async_callable_instance", AsyncJudge)


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def logged_async(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


def bare(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: function(*args, **kwargs)


@shape
@logged
def decorated(completions: Any, answer: list[str], **kwargs: Any) -> list[float]:
    return keyword_only(completions=completions, answer=answer)


add("decorated_without_wraps", lambda: bare(decorated))
add("cached_helper", lambda: logged(functools.partial(scaled, scale=3.0)))


@shape
@logged_async
async def decorated_async(completions: Any, **kwargs: Any) -> list[float]:
    return scaled(completions, 4.0)


def sync_wrapper_of_async(completions: Any, **kwargs: Any) -> Any:
    return scaled_async(completions, 2.0)


shape(sync_wrapper_of_async)


@shape
def curriculum(completions: Any, trainer_state: Any, **kwargs: Any) -> list[float]:
    progress = trainer_state.global_step / trainer_state.max_steps
    return [progress * len(text_of(c)) + trainer_state.epoch for c in completions]


@shape
def curriculum_of_further_fields(completions: Any, trainer_state: Any, **kwargs: Any) -> list[float]:
    last = trainer_state.log_history[-1]
    is_main = trainer_state.is_world_process_zero and trainer_state.is_local_process_zero
    return [last["reward"] + last["step"] + trainer_state.num_train_epochs + is_main] * len(completions)


@shape
def curriculum_by_kwargs(completions: Any, **kwargs: Any) -> list[float]:
    return [float(kwargs["trainer_state"].global_step >= 10)] * len(completions)


@shape
def logs_extra_and_metric(completions: Any, log_extra: Any, log_metric: Any, **kwargs: Any) -> list[float]:
    lengths = [float(len(text_of(c))) for c in completions]
    log_extra("characters", lengths)
    log_metric("characters", sum(lengths) / len(lengths))
    return lengths


@shape
def logs_if_it_can(completions: Any, log_metric: Any = None, **kwargs: Any) -> list[float]:
    if log_metric:
        log_metric("seen", 1.0)
    return [0.0] * len(completions)


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None
) -> float | dict[str, Any]:
    right = ground_truth in solution_str
    return {"score": float(right), "acc": right} if data_source == "math" else float(right)


@shape
def verl_compute_score(completions: Any, data_source: Any, reward_model: Any, **kwargs: Any) -> list[float]:
    scores = []
    for completion, source, model in zip(completions, data_source, reward_model, strict=True):
        score = compute_score(source, text_of(completion), model["ground_truth"])
        scores.append(score["score"] if isinstance(score, dict) else score)
    return scores


@shape
def compares_the_batch(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
    order = sorted(range(len(completions)), key=lambda n: len(text_of(completions[n])))
    return [order.index(n) / len(order) for n in range(len(completions))]


@shape
def compares_the_group(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
    means: dict[str, list[int]] = {}
    for prompt, completion in zip(prompts, completions, strict=True):
        means.setdefault(str(prompt), []).append(len(text_of(completion)))
    return [
        len(text_of(c)) - sum(means[str(p)]) / len(means[str(p)]) for p, c in zip(prompts, completions, strict=True)
    ]


@shape
def drawn_from_a_seed(completions: Any, **kwargs: Any) -> list[float]:
    generator = random.Random(0)
    return [generator.random() for _ in completions]


@shape
def sorts_its_arguments(completions: Any, answer: list[str], **kwargs: Any) -> list[float]:
    answer.sort()
    return [float(len(a)) for a in answer]


def counting() -> Callable[..., Any]:
    calls = []

    def reward(completions: Any, **kwargs: Any) -> list[float]:
        calls.append(1)
        return [float(len(calls))] * len(completions)

    return reward


add("counts_its_calls", counting)


def over_a_database() -> Callable[..., Any]:
    connection = sqlite3.connect(":memory:")

    def sql_reward(completions: Any, target: list[int], **kwargs: Any) -> list[float]:
        def value(number: int) -> float:
            try:
                return float(connection.execute("select ? + 1", [number]).fetchone()[0])
            except Exception:
                return 0.0

        return [value(number) for number in target]

    return sql_reward


add("over_a_database_connection", over_a_database)
