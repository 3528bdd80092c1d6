"""What a preference loss is: settings, a value per example, and the rewards that it implies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from grpo_lightning.algorithm.setting_checks import check_above_zero, check_finite


@dataclass(frozen=True)
class PreferenceScores:
    """M whole completions, each as one number. In pairs completion 2p is the chosen one of pair p, 2p + 1 the rejected."""

    logps: Tensor
    """(M,) nats: sum of the completion's logprobs under the policy; carries gradient."""
    ref_logps: Tensor
    """(M,) nats under the reference; 0 where there is none."""
    lengths: Tensor
    """(M,) tokens, the end-of-sequence token included."""
    is_chosen: Tensor
    """(M,) bool: True for completions that people like."""
    kl: Tensor
    """() nats: policy and reference on completions of other prompts, not below 0; 0 for losses that need none."""

    @property
    def log_ratios(self) -> Tensor:
        """``(M,)`` nats: policy minus reference."""
        return self.logps - self.ref_logps

    @property
    def mean_log_ratios(self) -> Tensor:
        """``(M,)`` nats per token."""
        return self.log_ratios / self.lengths


def delta(values: Tensor) -> Tensor:
    """``(P,)``: chosen minus rejected of the ``(2P,)`` values of pairs."""
    return values[0::2] - values[1::2]


@dataclass(frozen=True)
class PreferenceLoss(ABC):
    """Base of the losses that ``model.loss_type`` chooses: a frozen dataclass whose fields are its settings."""

    in_pairs: ClassVar[bool] = True
    """Whether an example is a pair, or one completion with a label."""
    needs_reference: ClassVar[bool] = True
    """False for a loss without ref_logps."""
    needs_kl: ClassVar[bool] = False
    """True for a loss that compares with completions of other prompts, which costs two passes without gradient."""

    beta: float = 0.1

    def __post_init__(self) -> None:
        check_finite(self)
        check_above_zero(self, "beta")

    @abstractmethod
    def per_example(self, scores: PreferenceScores) -> Tensor:
        """``(P,)`` for pairs, ``(M,)`` for completions: the loss of each, not yet averaged; lower is better."""

    def rewards(self, scores: PreferenceScores) -> Tensor:
        """``(M,)``: what each completion earns under the policy as a reward model; called without gradient."""
        return self.beta * scores.log_ratios
