"""Is the final answer right? By mathematics, by number, or by text."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from grpo_lightning.messages import Prompt
from grpo_lightning.rewards.base import RESERVED, BaseRewardFunction, Completion, RewardContractError, completion_text
from grpo_lightning.rewards.registry import register_reward
from grpo_lightning.rewards.runtime.worker_pool import WorkerError, WorkerPool
from grpo_lightning.rewards.text.extraction import last_boxed, lenient_answer, reference_answer, strict_answer
from grpo_lightning.rewards.text.numeric import only_number

ANSWER_KEYS = ("ground_truth", "answer", "solution")
MAX_ANSWER_CHARS = 1000
"""Longer answers score 0 unread: no reference is that long, and parsers take minutes over a megabyte of braces."""

_WHOLE = re.compile(r"-?[0-9]{1,18}")
_UNIT_WORDS = re.compile(r"(?<=[0-9]) +[A-Za-z]{2,}(?: [A-Za-z]+)*\.?$")

Verdict = bool | str
"""Right or wrong, or why it could not be told."""


@register_reward("accuracy")
@dataclass
class AccuracyReward(BaseRewardFunction):
    r"""1.0 where the completion's final answer equals the reference, else 0.0; None for a row without reference.

    Worked references are understood: ``... #### 42`` (GSM8K) and ``\boxed{42}`` (MATH). A list of references means
    that any of them will do.

    Args:
        name: What metrics and errors call this reward.
        weight: Factor in the total reward.
        mode: ``math`` compares as mathematics (math-verify: fractions, LaTeX, sets, equations; any expression of equal
            value counts, so ``2+3`` is right for ``5``), ``numeric`` compares one number (thousands separators,
            fractions, percent, currency, units), ``exact`` compares text.
        extraction: ``strict`` takes only what stands in the one ``<answer>...</answer>``; ``lenient`` takes the last
            such tag, else the last ``\boxed{}``, else what follows ``####``, else the last number.
        answer_key: Dataset column with the reference. By default ``ground_truth``, ``answer`` or ``solution``,
            whichever is found first.
        tolerance: Largest difference that still counts as equal, for ``numeric``.
        relative_tolerance: The same as a share of the reference, added to ``tolerance``.
        ignore_case: For ``exact``.
        time_limit: Seconds that math-verify may take over one answer before that completion's reward is None.
        workers: Processes that run math-verify.

    Example:
        >>> reward = AccuracyReward(mode="numeric")
        >>> reward(prompts=["p"] * 2, completions=["<answer>1,200</answer>", "12"], ground_truth=["1200", "13"])
        [1.0, 0.0]
    """

    name: str = "accuracy"
    mode: Literal["math", "numeric", "exact"] = "math"
    extraction: Literal["strict", "lenient"] = "lenient"
    answer_key: str | None = None
    tolerance: float = 1e-6
    relative_tolerance: float = 0.0
    ignore_case: bool = False
    time_limit: float = 3.0
    workers: int = 2
    _pool: WorkerPool | None = field(default=None, init=False, repr=False, compare=False)

    scope = "completion"
    batched = True
    call_time_limit = 300.0  # the first call also waits for the processes to start

    def __post_init__(self) -> None:
        if self.mode not in ("math", "numeric", "exact"):
            raise ValueError(f"{self.name}: mode={self.mode!r} is unknown. Choose math, numeric or exact.")
        if self.extraction not in ("strict", "lenient"):
            raise ValueError(f"{self.name}: extraction={self.extraction!r} is unknown. Choose strict or lenient.")
        if self.time_limit <= 0 or self.workers < 1 or min(self.tolerance, self.relative_tolerance) < 0:
            raise ValueError(f"{self.name}: time_limit above 0, workers 1 or more, tolerances 0 or more; got {self}.")
        if self.mode == "math" and importlib.util.find_spec("math_verify") is None:
            raise ModuleNotFoundError(
                f"{self.name}: mode=math needs math-verify. Run pip install math-verify, or choose mode=numeric."
            )
        if self.mode == "math":
            script = Path(__file__).parents[1] / "runtime" / "math_worker.py"
            self._pool = WorkerPool(script, size=self.workers, time_limit=self.time_limit)
            self.concurrency = self.workers  # more calls would only wait for the processes, in slots that others need

    def __call__(
        self,
        prompts: list[Prompt],
        completions: list[Completion],
        completions_ids: list[list[int]] | None = None,
        trainer_state: Any | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_error: Callable[[int, str], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """1.0, 0.0 or None per completion.

        Raises:
            RewardContractError: If no column holds the references.
        """
        references = columns[self._reference_column(columns)]
        extract = strict_answer if self.extraction == "strict" else lenient_answer
        answers = [extract(completion_text(completion)) for completion in completions]
        verdicts = self._verdicts(list(zip(references, answers, strict=True)))
        if log_extra is not None:
            log_extra("extracted_answer", [answer and answer[:MAX_ANSWER_CHARS] for answer in answers])
        for row, verdict in enumerate(verdicts):
            if isinstance(verdict, str) and log_error is not None:
                log_error(row, verdict)
        return [float(verdict) if isinstance(verdict, bool) else None for verdict in verdicts]

    def close(self) -> None:
        """Ends the math-verify processes; the next call starts new ones."""
        if self._pool is not None:
            self._pool.close()

    def _reference_column(self, columns: dict[str, Any]) -> str:
        wanted = (self.answer_key,) if self.answer_key else ANSWER_KEYS
        for key in wanted:
            if key in columns:
                return key
        found = ", ".join(sorted(set(columns) - RESERVED)) or "no further columns"
        raise RewardContractError(
            f"Reward '{self.name}' finds no reference: looked for the column {' or '.join(wanted)}, the data has {found}. "
            "Set answer_key in the reward's init_args to the column that holds the reference."
        )

    def _verdicts(self, pairs: list[tuple[Any, str | None]]) -> list[Verdict | None]:
        alternatives = [_reference_texts(reference) for reference, _ in pairs]
        tasks: dict[tuple[str, str | None], Verdict | None] = {
            (text, answer): _quick_verdict(text, answer)
            for texts, (_, answer) in zip(alternatives, pairs, strict=True)
            for text in texts
        }
        # Completions of a group often agree, and equal text needs no grading: only what is left is compared.
        undecided = [task for task, verdict in tasks.items() if verdict is None]
        tasks.update(zip(undecided, self._compare(undecided), strict=True))
        return [
            _any_right([tasks[text, answer] for text in texts]) if texts else None
            for texts, (_, answer) in zip(alternatives, pairs, strict=True)
        ]

    def _compare(self, tasks: list[tuple[str, Any]]) -> list[Verdict]:
        if self.mode == "math":
            return self._compare_as_mathematics(tasks)
        compare = self._compare_as_numbers if self.mode == "numeric" else self._compare_as_text
        return [compare(reference, answer) for reference, answer in tasks]

    def _compare_as_text(self, reference: str, answer: str) -> Verdict:
        one, other = " ".join(reference.split()), " ".join(answer.split())
        return one.casefold() == other.casefold() if self.ignore_case else one == other

    def _compare_as_numbers(self, reference: str, answer: str) -> Verdict:
        expected = only_number(reference)
        if expected is None:
            return f"the reference {reference[:80]!r} is not one number; choose mode=math or mode=exact"
        found = only_number(_unboxed(answer))
        return found is not None and found.equals(expected, self.tolerance, self.relative_tolerance)

    def _compare_as_mathematics(self, tasks: list[tuple[str, str]]) -> list[Verdict]:
        assert self._pool is not None  # made on construction in this mode
        verdicts: list[Verdict | None] = [_whole_verdict(*task) for task in tasks]
        hard = [index for index, verdict in enumerate(verdicts) if verdict is None]
        replies = self._pool.map([(tasks[index][0], _unboxed(tasks[index][1])) for index in hard])
        for index, reply in zip(hard, replies, strict=True):
            verdicts[index] = self._math_verdict(reply, tasks[index])
        return [verdict for verdict in verdicts if verdict is not None]

    def _math_verdict(self, reply: str | WorkerError, task: tuple[str, str]) -> Verdict:
        if reply == "unreadable reference":
            return f"math-verify cannot read the reference {task[0][:80]!r}; choose mode=exact"
        if reply == "timeout" or isinstance(reply, WorkerError):
            detail = "" if reply == "timeout" else f" ({reply})"
            return f"no verdict on the answer {task[1][:80]!r} within time_limit={self.time_limit:g} s{detail}"
        return reply == "equal"


def _reference_texts(reference: Any) -> list[str]:
    """The acceptable answers of one row; none where the reference is None."""
    if isinstance(reference, list | tuple):
        return [text for entry in reference for text in _reference_texts(entry)]
    return [] if reference is None else [reference_answer(str(reference))]


def _quick_verdict(reference: str, answer: str | None) -> bool | None:
    if answer is None or not answer or len(answer) > MAX_ANSWER_CHARS:
        return False
    if answer == reference:
        return True
    return None


def _whole_verdict(reference: str, answer: str) -> bool | None:
    """Two whole numbers need no mathematics, and are most of what arithmetic tasks compare."""
    if _WHOLE.fullmatch(answer) and _WHOLE.fullmatch(reference):
        return int(answer) == int(reference)
    return None


def _unboxed(answer: str) -> str:
    """The content of the answer's box, if it has one, and without unit words: ``18 dollars`` is ``18``."""
    boxed = last_boxed(answer)
    return _UNIT_WORDS.sub("", answer if boxed is None else boxed)


def _any_right(verdicts: list[Verdict | None]) -> Verdict:
    """True if any alternative is right, else the first reason for having no verdict, else False."""
    if True in verdicts:
        return True
    return next((verdict for verdict in verdicts if isinstance(verdict, str)), False)
