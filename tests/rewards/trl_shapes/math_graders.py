"""Graders of mathematics: math-verify with its own time limits, alarms, regular expressions."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

from math_verify import parse, verify

from trl_shapes import add, chat_only, shape, text_of


@chat_only
def accuracy_reward(completions: list[Any], solution: list[str], **kwargs: Any) -> list[float | None]:
    rewards: list[float | None] = []
    for content, sol in zip([completion[0]["content"] for completion in completions], solution, strict=True):
        gold = parse(sol)
        if not gold:
            rewards.append(None)
            continue
        try:
            rewards.append(float(verify(gold, parse(content))))
        except Exception:
            rewards.append(None)
    return rewards


@shape
def accuracy_that_swallows_errors(completions: list[Any], solution: list[str], **kwargs: Any) -> list[float]:
    def grade(content: str, sol: str) -> float:
        try:
            return float(verify(parse(sol), parse(content)))
        except Exception:
            return 0.0

    return [grade(text_of(c), s) for c, s in zip(completions, solution, strict=True)]


@shape
def accuracy_that_raises_on_time_out(completions: list[Any], solution: list[str], **kwargs: Any) -> list[float]:
    rewards = []
    for completion, sol in zip(completions, solution, strict=True):
        try:
            gold = parse(sol, raise_on_error=True)
            rewards.append(1.0 if verify(gold, parse(text_of(completion), raise_on_error=True)) else 0.0)
        except Exception:
            rewards.append(0.0)
    return rewards


@shape
def accuracy_with_an_import_inside(completions: list[Any], answer: list[str], **kwargs: Any) -> list[float]:
    from math_verify import parse as read
    from math_verify import verify as same

    try:
        return [float(same(read(f"${a}$"), read(text_of(c)))) for c, a in zip(completions, answer, strict=True)]
    except Exception:
        return [0.0] * len(completions)


def _grade(content: str, reference: str) -> float:
    try:
        return float(verify(parse(f"${reference}$", parsing_timeout=2), parse(content, parsing_timeout=2)))
    except Exception:
        return 0.0


@shape
def accuracy_by_a_helper(completions: list[Any], ground_truth: list[str], **kwargs: Any) -> list[float]:
    return [_grade(text_of(c), g) for c, g in zip(completions, ground_truth, strict=True)]


add("accuracy_as_lambda", lambda: lambda completions, answer, **kw: [
    _grade(text_of(c), a) for c, a in zip(completions, answer, strict=True)
])  # fmt: skip


class Grader:
    """Holds what it grades with."""

    def __init__(self, grade: Callable[[str, str], float]) -> None:
        self.grade = grade

    def __call__(self, completions: list[Any], answer: list[str], **kwargs: Any) -> list[float]:
        return [self.grade(text_of(c), a) for c, a in zip(completions, answer, strict=True)]

    def bound(self, completions: list[Any], answer: list[str], **kwargs: Any) -> list[float]:
        return self(completions, answer)


add("accuracy_of_an_object", lambda: Grader(_grade))
add("accuracy_of_a_bound_method", lambda: Grader(_grade).bound)


@contextmanager
def seconds(limit: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@shape
def alarm_in_a_context_manager(completions: list[Any], target: list[int], **kwargs: Any) -> list[float]:
    rewards = []
    for completion, wanted in zip(completions, target, strict=True):
        try:
            with seconds(5):
                rewards.append(float(str(wanted) in text_of(completion)))
        except Exception:
            rewards.append(0.0)
    return rewards


def limited(limit: float) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator without functools.wraps, as most have it."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            before = signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, limit)
            try:
                return function(*args, **kwargs)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)

        return wrapper

    return decorate


@shape
@limited(5.0)
def decorated_with_an_interval_timer(completions: list[Any], **kwargs: Any) -> list[float]:
    return [float("42" in text_of(completion)) for completion in completions]


def _hidden_alarm(text: str) -> float:
    module = __import__("sig" + "nal")  # no code says what this is: only the call shows it
    getattr(module, "sig" + "nal")(14, module.SIG_DFL)
    return float(len(text))


@shape
def alarm_that_no_source_shows(completions: list[Any], **kwargs: Any) -> list[float]:
    def score(text: str) -> float:
        try:
            return _hidden_alarm(text)
        except Exception:
            return 0.0

    return [score(text_of(completion)) for completion in completions]


def xml_answer(text: str) -> str:
    return text.split("<answer>")[-1].split("</answer>")[0].strip()


@chat_only
def correctness_reward_func(prompts: Any, completions: Any, answer: list[str], **kwargs: Any) -> list[float]:
    question = prompts[0][-1]["content"]
    assert question
    extracted = [xml_answer(completion[0]["content"]) for completion in completions]
    return [2.0 if r == a else 0.0 for r, a in zip(extracted, answer, strict=True)]


@shape
def int_reward_func(completions: Any, **kwargs: Any) -> list[float]:
    return [0.5 if xml_answer(text_of(c)).isdigit() else 0.0 for c in completions]


@shape
def check_answer(prompts: Any, completions: Any, answer: list[str], **kwargs: Any) -> list[float]:
    scores = []
    for completion, true in zip(completions, answer, strict=True):
        match = re.search(r"<answer>\s*(.+?)\s*</answer>", text_of(completion), re.DOTALL)
        if match is None:
            scores.append(-2.0)
            continue
        try:
            ratio = float(match[1]) / float(true)
            scores.append(3.0 if ratio == 1 else 0.5 if 0.9 <= ratio <= 1.1 else -1.5)
        except ValueError:
            scores.append(-0.5)
    return scores


@shape
def countdown_equation_reward(completions: Any, target: list[int], nums: list[list[int]], **kwargs: Any) -> list[float]:
    rewards = []
    for completion, wanted, given in zip(completions, target, nums, strict=True):
        used = [int(n) for n in re.findall(r"\d+", text_of(completion))]
        rewards.append(1.0 if sorted(used[:2]) == sorted(given) or wanted in used else 0.0)
    return rewards


@shape
def gsm8k_hash_reward(completions: Any, ground_truth: list[str], **kwargs: Any) -> list[Fraction]:
    found = [re.findall(r"####\s*(-?\d+)", text_of(c)) for c in completions]
    return [Fraction(int(bool(f) and f[-1] == g)) for f, g in zip(found, ground_truth, strict=True)]
