"""Graders: pairs of reference and answer in, verdicts out; one grader for each mode of the accuracy reward."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from grpo_lightning.concurrency.worker_pool import WorkerError, WorkerPool
from grpo_lightning.rewards.grading.braces import is_closed, is_readable
from grpo_lightning.rewards.grading.measures import Quantity
from grpo_lightning.rewards.grading.notation import tidy, visible
from grpo_lightning.rewards.grading.numeric import Margin
from grpo_lightning.rewards.grading.shapes import Equation, Shape, Value, parse, read
from grpo_lightning.rewards.grading.symbols import LATEX
from grpo_lightning.rewards.grading.verdict import Comparison, formulas_in
from grpo_lightning.rewards.grading.words import is_name, same_name
from grpo_lightning.rewards.text.extraction import inner_answer

MAX_ANSWER_CHARS = 1000
"""Longer answers score 0 unread: no reference is that long, and parsers take minutes over a megabyte of braces."""

Verdict = bool | str
"""Right or wrong, or why it could not be told."""
_WHOLE = re.compile(r"-?[0-9]{1,18}")
_DECIMAL_COMMA = re.compile(r"(?<![0-9.,])([0-9]+),((?<=0,)[0-9]+|[0-9]{1,2}|[0-9]{4,})(?![0-9.,])")
_CHOOSE = re.compile(r"\b[Cn]?C\(([0-9]+), ?([0-9]+)\)")
Task = tuple[str, str | None]
"""A reference as the dataset has it, and the answer taken from a completion."""


class Grader(Protocol):
    """Decides on answers."""

    def verdicts(self, tasks: Sequence[Task]) -> list[Verdict]:
        """One verdict per pair of reference and answer."""

    def close(self) -> None:
        """Releases what the grader holds."""


class ExactGrader:
    """Text, up to white space, characters that show nothing and a final full stop."""

    def __init__(self, ignore_case: bool) -> None:
        self.ignore_case = ignore_case

    def verdicts(self, tasks: Sequence[Task]) -> list[Verdict]:
        """True where the texts agree."""
        return [self._verdict(*task) for task in tasks]

    def close(self) -> None:
        """Nothing to release."""

    def _verdict(self, reference: str, answer: str | None) -> Verdict:
        expected = self._text(inner_answer(reference) or "")
        if not expected:
            return "the reference is empty"
        if answer is None or len(answer) > MAX_ANSWER_CHARS + len(reference):
            return False
        return self._text(inner_answer(answer) or "") == expected

    def _text(self, text: str) -> str:
        text = " ".join(visible(text).split())
        text = text.removesuffix(".") if not text.endswith("..") else text
        return text.casefold() if self.ignore_case else text


class NumericGrader:
    """One number in any notation."""

    def __init__(self, margin: Margin) -> None:
        self.comparison = Comparison(formulas=_never, margin=margin)

    def verdicts(self, tasks: Sequence[Task]) -> list[Verdict]:
        """True where the numbers agree; a reason where the reference is none."""
        return [self._verdict(*task) for task in tasks]

    def close(self) -> None:
        """Nothing to release."""

    def _verdict(self, reference: str, answer: str | None) -> Verdict:
        expected = reference_shape(reference)
        if expected is None or _quantity(expected) is None:
            return f"the reference {reference[:80]!r} is not one number; choose mode=math or mode=exact"
        found = answer_shape(with_decimal_point(answer, expected))
        return found is not None and self.comparison.same(expected, found)


class MathGrader:
    """Mathematics: everything but formulas is decided in this process, formulas in child processes.

    Args:
        margin: For plain numbers.
        time_limit: Seconds over one answer.
        workers: Child processes.
    """

    def __init__(self, margin: Margin, time_limit: float, workers: int) -> None:
        self.margin, self.time_limit, self.workers = margin, time_limit, workers
        self.pool = WorkerPool(
            Path(__file__).with_name("grading") / "math_worker.py", size=workers, time_limit=time_limit
        )
        self._readable: dict[str, bool] = {}

    def verdicts(self, tasks: Sequence[Task]) -> list[Verdict]:
        """True where the answer says what the reference says; a reason where it could not be told."""
        found: list[Verdict | None] = [self._quick_verdict(*task) for task in tasks]
        open_tasks = [task for task, verdict in zip(tasks, found, strict=True) if verdict is None]
        if len(open_tasks) < 2:
            slow = [self._slow_verdict(*task) for task in open_tasks]
        else:
            with ThreadPoolExecutor(min(self.workers, len(open_tasks))) as threads:
                slow = list(threads.map(lambda task: self._slow_verdict(*task), open_tasks))
        late = iter(slow)
        return [next(late) if verdict is None else verdict for verdict in found]

    def close(self) -> None:
        """Ends the child processes; the next formula starts new ones."""
        self.pool.close()

    def _quick_verdict(self, reference: str, answer: str | None) -> Verdict | None:
        """The verdict where no formula has to be read; None where one has."""
        if answer is not None and _WHOLE.fullmatch(answer) and _WHOLE.fullmatch(reference):
            return int(answer) == int(reference)  # most of what arithmetic tasks compare
        expected = reference_shape(reference)
        if expected is None:
            return _unreadable(reference)
        if isinstance(expected, Value) and expected.is_words and is_name(expected.text):
            return answer is not None and same_name(expected.text, tidy(inner_answer(answer) or ""))
        found = answer_shape(with_decimal_point(answer, expected))
        try:
            right = found is not None and Comparison(_leave_open, self.margin).same(expected, found)
        except _NeedsMathematicsError:
            return None
        # Wrong at a glance, but a reference that nobody can read makes no answer wrong.
        return right if right or all(self._readable.get(text, False) for text in formulas_in(expected)) else None

    def _slow_verdict(self, reference: str, answer: str | None) -> Verdict:
        expected = reference_shape(reference)
        assert expected is not None  # else the quick verdict was final
        found = answer_shape(with_decimal_point(answer, expected))
        start = time.monotonic()

        def formulas(relation: str, one: str, other: str) -> bool:
            if time.monotonic() - start > self.time_limit:
                raise WorkerError("the parts of the answer took that long together")
            if not is_readable(other):
                return False
            reply = self.pool.call((relation, as_latex(one), as_latex(other), self.time_limit))
            if reply == "timeout":
                raise WorkerError("")
            if reply == "unreadable reference":
                raise _UnreadableError
            return bool(reply == "yes")

        try:
            if found is not None and Comparison(formulas, self.margin).same(expected, found):
                return True
            for text in formulas_in(expected):
                if text not in self._readable:
                    formulas("equal", text, "0")
                    self._readable[text] = True
            return False
        except _UnreadableError:
            return _unreadable(reference)
        except WorkerError as error:
            detail = f" ({error})" if str(error) else ""
            return f"no verdict on the answer {(answer or '')[:80]!r} within time_limit={self.time_limit:g} s{detail}"


class _NeedsMathematicsError(Exception):
    """Two formulas have to be compared."""


class _UnreadableError(Exception):
    """The parser does not understand the reference."""


def _leave_open(relation: str, reference: str, answer: str) -> bool:
    raise _NeedsMathematicsError


def _never(relation: str, reference: str, answer: str) -> bool:
    return False


def _unreadable(reference: str) -> str:
    return f"the reference {reference[:80]!r} cannot be read as mathematics; choose mode=exact, or mend it"


@lru_cache(maxsize=4096)
def reference_shape(reference: str) -> Shape | None:
    """The shape of a reference; None where it is empty, too long, or its braces never close."""
    return _shape(inner_answer(reference), keep_names=True)


@lru_cache(maxsize=4096)
def answer_shape(answer: str | None) -> Shape | None:
    """The shape of an answer; None where there is none that could be right."""
    return None if answer is None else _shape(inner_answer(answer))


def with_decimal_point(answer: str | None, expected: Shape) -> str | None:
    """The answer to one number that is not whole, with a point for its decimal comma: ``18,5`` is no list then.

    Example:
        >>> with_decimal_point("18,5 km", parse("18.5")), with_decimal_point("1,2", parse("1, 2"))
        ('18.5 km', '1,2')
    """
    wanted = _quantity(expected)
    if answer is None or wanted is None or wanted.number.value.denominator == 1:
        return answer
    return answer if answer.count(",") != 1 else _DECIMAL_COMMA.sub(r"\1.\2", answer)


def _shape(text: str | None, keep_names: bool = False) -> Shape | None:
    if not text or len(text) > MAX_ANSWER_CHARS or not is_closed(text):
        return None
    shape = read(text, keep_names)
    return None if isinstance(shape, Value) and not shape.text else shape


def _quantity(shape: Shape) -> Quantity | None:
    if isinstance(shape, Equation) and shape.name:
        shape = parse(shape.parts[-1])
    return shape.quantity if isinstance(shape, Value) else None


def as_latex(text: str) -> str:
    r"""A text in the notation of ``tidy`` as a parser of LaTeX reads it.

    Example:
        >>> as_latex("2*π"), as_latex("C(5, 2)")
        ('2\\cdot \\pi ', '\\binom{5}{2}')
    """
    return _CHOOSE.sub(r"\\binom{\1}{\2}", "".join(LATEX.get(char, char) for char in text))
