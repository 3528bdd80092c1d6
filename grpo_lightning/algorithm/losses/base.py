"""What a policy loss is: settings, a value per token, how tokens are averaged, and what it reports."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from grpo_lightning.algorithm.averaging import StepTotals, mean_of_tokens
from grpo_lightning.algorithm.metric_sums import MetricSums
from grpo_lightning.algorithm.setting_checks import HasObjectiveSettings, refusal
from grpo_lightning.algorithm.token_batch import LossInputs


@dataclass(frozen=True)
class PolicyLoss(ABC):
    """Base of the losses that ``model.loss_type`` chooses: a frozen dataclass whose fields are its settings.

    A field named like a setting of the command line (``epsilon``, ``epsilon_high``, ``delta``, ...) receives it.

    Example:
        >>> @dataclass(frozen=True)
        ... class Reinforce(PolicyLoss):
        ...     def per_token(self, inputs: LossInputs) -> Tensor:
        ...         return -inputs.advantages * inputs.logprobs
    """

    sampler_correction: ClassVar[Literal["multiplied", "own", "none"]] = "multiplied"
    """multiplied: the sampler correction multiplies the loss. own: it is in ``inputs`` and the loss uses it itself.
    none: the loss compares with the sampler's logprobs instead."""
    marks_tokens: ClassVar[bool] = False
    """True for a loss with a :meth:`mark`, which costs a pass for the old logprobs."""
    needs_advantage: ClassVar[bool] = False
    """True where a completion with advantage 0 has no gradient, so that it need not be computed."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(vars(type(self)).get("known_as", type(self).__name__))

    @abstractmethod
    def per_token(self, inputs: LossInputs) -> Tensor:
        """``(T,)``: the loss of each token, not yet averaged; lower is better."""

    def token_weights(self, lengths: Tensor, totals: StepTotals) -> Tensor:
        """``(M,)``: what a token of each completion weighs; by default all tokens of the step weigh the same.

        It must not depend on the micro-batch: only on the completion's own length and the totals of the step.

        Args:
            lengths: ``(M,)`` floating point, tokens that count.
            totals: Of the whole optimizer step over all ranks.
        """
        return mean_of_tokens(lengths, totals)

    def metrics(self, inputs: LossInputs) -> MetricSums:
        """Further numbers for the log, as sums; called without gradient."""
        return MetricSums()

    def mark(self, advantages: Tensor, logprobs: Tensor, generator: torch.Generator) -> Tensor:
        """``(K,)`` bool: tokens to treat differently, chosen among all K that count in the step, over all ranks.

        Args:
            advantages: ``(K,)`` on the CPU.
            logprobs: ``(K,)`` nats, at the weights that start the step.
            generator: For random choices: the same on every rank.
        """
        raise NotImplementedError

    def check_updates(self, num_updates: int) -> None:  # noqa: B027 - most losses work with any
        """Refuses numbers of optimizer steps per GRPO step with which the loss has no effect."""

    def check(self, settings: HasObjectiveSettings) -> None:  # noqa: B027 - most losses work with any
        """Refuses settings of the objective that this loss cannot work with.

        Raises:
            ValueError: In the words of the config.
        """


@dataclass(frozen=True)
class FunctionLoss(PolicyLoss):
    """A plain function as a loss, averaged over all tokens of the step."""

    function: Callable[[LossInputs], Tensor]

    @property
    def name(self) -> str:
        """The function's."""
        return str(getattr(self.function, "__name__", "function"))

    def per_token(self, inputs: LossInputs) -> Tensor:
        """What the function gives."""
        return self.function(inputs)


def warn_of_sequence_ratio(loss: PolicyLoss, settings: HasObjectiveSettings) -> None:
    """Warns where every token carries the ratio of its completion, and the loss adds tokens up."""
    if settings.importance_sampling_level == "sequence":
        warnings.warn(
            f"model.importance_sampling_level='sequence' with model.loss_type={loss.name!r}: this loss sums over "
            "tokens, so each completion counts by its length. GSPO's own objective is loss_type='grpo'.",
            stacklevel=6,
        )


def refuse_level(loss: PolicyLoss, settings: HasObjectiveSettings, why: str) -> None:
    """Refuses another importance level than token, which the loss would not use."""
    if settings.importance_sampling_level != "token":
        reason = f"has no effect on model.loss_type={loss.name!r}, {why}. Leave it at 'token'."
        raise refusal(settings, "importance_sampling_level", reason)
