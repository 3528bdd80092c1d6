"""Is the final answer right? By mathematics, by number, or by text."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Literal

from grpo_lightning.messages import Prompt
from grpo_lightning.rewards.base import BaseRewardFunction, Completion, RewardContractError, completion_text
from grpo_lightning.rewards.graders import (
    MAX_ANSWER_CHARS,
    ExactGrader,
    Grader,
    MathGrader,
    NumericGrader,
    Verdict,
)
from grpo_lightning.rewards.grading.numeric import Margin
from grpo_lightning.rewards.grading.references import UnknownReferenceError, reference_texts
from grpo_lightning.rewards.registry import register_reward
from grpo_lightning.rewards.row_columns import column_of
from grpo_lightning.rewards.text.claimed import claims_of
from grpo_lightning.rewards.text.extraction import lenient_answer, strict_answer

ANSWER_KEYS = ("ground_truth", "answer", "solution")


MODES_OF = {
    "tolerance": ("math", "numeric"),
    "relative_tolerance": ("math", "numeric"),
    "ignore_case": ("exact",),
    "time_limit": ("math",),
    "workers": ("math",),
}
"""Which modes look at a setting that others ignore."""


@register_reward("accuracy")
@dataclass
class AccuracyReward(BaseRewardFunction):
    r"""1.0 where the completion's final answer equals the reference, else 0.0; None for a row without reference.

    Worked references are understood: ``... #### 42`` (GSM8K), ``\boxed{42}`` (MATH; several boxes are a list of which
    every member is asked for). A list of references means that any of them will do, as do the aliases of TriviaQA and
    the answers of SQuAD; other dictionaries are refused.

    Args:
        name: What metrics and errors call this reward.
        weight: Factor in the total reward.
        mode: ``math`` compares as mathematics (numbers in any notation, units, fractions, sets, intervals, equations,
            words; formulas through math-verify's parser: any formula of equal value counts, so ``2+3`` is right for
            ``5``), ``numeric`` compares one number (thousands separators, fractions, powers of ten, percent, currency,
            units), ``exact`` compares text up to white space and a final full stop.
        extraction: ``strict`` takes only what stands in the one ``<answer>...</answer>``; ``lenient`` takes the last
            such tag, else the last ``\boxed{}`` (or list of them), else what follows ``####``, else the answer of a JSON object
            that ends the text, else words or the letter of a choice behind "the answer is", else all of a text that is
            nothing but a value, else, in ``math``, the last formula in ``$...$``, ``\(...\)`` or ``\[...\]``, else
            the last number.
        answer_key: Dataset column with the reference. By default ``ground_truth``, ``answer`` or ``solution``,
            whichever is found first.
        tolerance: Largest difference between two numbers that still counts as equal. By default a millionth, or a
            hundred-thousandth of the reference where that is less.
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
    tolerance: float | None = None
    relative_tolerance: float = 0.0
    ignore_case: bool = False
    time_limit: float = 3.0
    workers: int = 2
    _grader: Grader = field(init=False, repr=False, compare=False)

    scope = "completion"
    batched = True
    call_time_limit = 300.0  # the first call also waits for the processes to start

    def __post_init__(self) -> None:
        if self.mode not in ("math", "numeric", "exact"):
            raise ValueError(f"{self.name}: mode={self.mode!r} is unknown. Choose math, numeric or exact.")
        if self.extraction not in ("strict", "lenient"):
            raise ValueError(f"{self.name}: extraction={self.extraction!r} is unknown. Choose strict or lenient.")
        if self.time_limit <= 0 or self.workers < 1 or min(self.tolerance or 0, self.relative_tolerance) < 0:
            raise ValueError(f"{self.name}: time_limit above 0, workers 1 or more, tolerances 0 or more; got {self}.")
        for name, modes in MODES_OF.items():
            if self.mode not in modes and getattr(self, name) != getattr(AccuracyReward, name):
                raise ValueError(
                    f"{self.name}: {name}={getattr(self, name)!r} has no effect with mode={self.mode}. Leave it out, or use mode="
                    f"{' or '.join(modes)}."
                )
        margin = Margin(self.tolerance, self.relative_tolerance)
        if self.mode == "exact":
            self._grader = ExactGrader(self.ignore_case)
        elif self.mode == "numeric":
            self._grader = NumericGrader(margin)
        else:
            self._grader = MathGrader(margin, self.time_limit, self.workers)
            self.concurrency = self.workers  # more calls would only wait for the processes, in slots that others need

    def __call__(
        self,
        prompts: list[Prompt],
        completions: list[Completion],
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_error: Callable[[int, str], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """1.0, 0.0 or None per completion.

        Raises:
            RewardContractError: If no column holds the references.
        """
        references = columns[self._reference_column(columns)]
        answers = [self._answer(completion_text(completion)) for completion in completions]
        verdicts = self._verdicts(references, answers)
        if log_extra is not None:
            log_extra("extracted_answer", [answer and answer[:MAX_ANSWER_CHARS] for answer in answers])
        for row, verdict in enumerate(verdicts):
            if isinstance(verdict, str) and log_error is not None:
                log_error(row, verdict)
        return [float(verdict) if isinstance(verdict, bool) else None for verdict in verdicts]

    def check_columns(self, columns: Collection[str]) -> None:
        """Refuses data without a column of references."""
        self._reference_column(columns)

    def close(self) -> None:
        """Ends the math-verify processes; the next call starts new ones."""
        self._grader.close()

    def _answer(self, text: str) -> str | None:
        if self.extraction == "strict":
            return strict_answer(text)
        return lenient_answer(text, prefer_formulas=self.mode == "math")

    def _reference_column(self, columns: Collection[str]) -> str:
        return column_of(self, "answer_key", "reference", ANSWER_KEYS, columns)

    def _verdicts(self, references: list[Any], answers: list[str | None]) -> list[Verdict | None]:
        alternatives = [self._reference_texts(reference) for reference in references]
        claims = [[None] if answer is None else claims_of(answer) for answer in answers]
        pairs = list(zip(alternatives, claims, strict=True))
        # Completions of a group often agree: equal pairs are compared once.
        tasks = list(dict.fromkeys((text, claim) for texts, made in pairs for text in texts for claim in made))
        verdicts = dict(zip(tasks, self._grader.verdicts(tasks), strict=True))
        return [
            _any_right([_all_right([verdicts[text, claim] for claim in made]) for text in texts]) if texts else None
            for texts, made in pairs
        ]

    def _reference_texts(self, reference: Any) -> list[str]:
        try:
            return reference_texts(reference)
        except UnknownReferenceError as error:
            raise RewardContractError(f"Reward '{self.name}': {error}, or set answer_key to another column.") from error


def _all_right(verdicts: list[Verdict]) -> Verdict:
    """False if any claim is wrong, else the first reason for having no verdict, else True."""
    if False in verdicts:
        return False
    return next((verdict for verdict in verdicts if isinstance(verdict, str)), True)


def _any_right(verdicts: list[Verdict]) -> Verdict:
    """True if any alternative is right, else the first reason for having no verdict, else False."""
    if True in verdicts:
        return True
    return next((verdict for verdict in verdicts if isinstance(verdict, str)), False)
