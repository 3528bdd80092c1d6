"""On-policy distillation: a teacher says at every sampled token what it would have done."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from grpo_lightning.algorithm.averaging import StepTotals
from grpo_lightning.algorithm.metric_sums import MetricSums, mean_over
from grpo_lightning.numerics.divergence import Divergence, Side, divergence_per_token
from grpo_lightning.numerics.dtypes import DTYPES
from grpo_lightning.numerics.output_head import OutputHead, output_head
from grpo_lightning.policy.loading import load_causal_lm, load_config, load_tokenizer
from grpo_lightning.policy.policy import Policy
from grpo_lightning.scoring.packing import Layout
from grpo_lightning.scoring.scorer import Scorer
from grpo_lightning.types import Rollouts

KINDS = ("reverse_kl", "forward_kl", "jsd")


@dataclass(frozen=True)
class Distillation:
    """A teacher for the sampled completions (GKD, arXiv:2306.13649; MiniLLM, arXiv:2306.08543).

    ``weight`` times the mean divergence per completion token is added to the loss.

    Args:
        teacher: Directory or hub name of a causal language model with the policy's tokenizer.
        weight: Factor of the divergence. The policy loss has advantages of about 1, the divergence nats per token.
        divergence: reverse_kl (keep to what the teacher would do), forward_kl (cover all that it would) or jsd (between).
        top_k: Tell only the teacher's so many likeliest tokens apart, and take the others together; null for all.
        device: Where the teacher is (cuda:1); null for the policy's device.
        dtype: What it is held in; bfloat16 where the policy is trained on a GPU, float32 on a CPU, unless said.

    Raises:
        ValueError: For values that mean nothing.
    """

    teacher: str
    weight: float = 1.0
    divergence: Divergence = "reverse_kl"
    top_k: int | None = None
    device: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.divergence not in KINDS:
            raise ValueError(
                f"model.distillation.divergence={self.divergence!r} is unknown. Choose one of {', '.join(KINDS)}."
            )
        if not self.weight > 0:
            raise ValueError(f"model.distillation.weight={self.weight} teaches nothing. Use a number above 0.")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"model.distillation.top_k={self.top_k} tells no token apart. Use 1 or more, or null.")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"model.distillation.dtype={self.dtype!r} is unknown. Choose {', '.join(DTYPES)}.")


class Teacher:
    """A frozen model that is scored beside the policy, in the same layout; its prompts once per group too.

    Its tokenizer is read on construction, its weights in ``start``.

    Args:
        settings: See there.
        policy: Whose tokens it has to understand.
        temperature: The sampling temperature.
        layout: Of micro-batches.

    Raises:
        ValueError: If the two tokenizers differ.
    """

    def __init__(self, settings: Distillation, policy: Policy, temperature: float, layout: str) -> None:
        self.settings, self.temperature, self.layout = settings, temperature, layout
        load_config(settings.teacher)
        _check_same_tokens(load_tokenizer(settings.teacher), policy.tokenizer, settings.teacher)
        self.scorer: Scorer | None = None

    def start(self, device: torch.device) -> None:
        """Loads the weights, once.

        Args:
            device: Of the policy.
        """
        if self.scorer is not None:
            return
        place = device if self.settings.device is None else torch.device(self.settings.device)
        dtype = DTYPES[self.settings.dtype or ("float32" if place.type == "cpu" else "bfloat16")]
        model = load_causal_lm(self.settings.teacher, dtype).requires_grad_(False).eval().to(place)
        layout: Layout | str = self.layout
        self.scorer = Scorer(model, self.temperature, layout)  # type: ignore[arg-type]  # checked by the policy's own

    def divergence(self, rollouts: Rollouts, rows: Tensor, hidden: Tensor, head: OutputHead) -> Tensor:
        """``(T,)`` nats at the tokens of the completions ``rows``; gradient reaches ``hidden`` and ``head``.

        Args:
            rollouts: On the CPU.
            rows: ``(M,)`` on the CPU.
            hidden: ``(T, H)``, the policy's, each predicting a token.
            head: The policy's.
        """
        assert self.scorer is not None
        place = next(self.scorer.model.parameters()).device
        with torch.no_grad():
            expected = self.scorer.hidden(rollouts, rows, place).to(hidden.device)
        own_head = output_head(self.scorer.model)[1]
        student, teacher = Side(hidden, head), Side(expected, own_head)
        return divergence_per_token(student, teacher, self.settings.divergence, self.settings.top_k, self.temperature)

    def loss(self, divergence: Tensor, mask: Tensor, totals: StepTotals) -> tuple[Tensor, MetricSums]:
        """The micro-batch's share of ``weight`` times the mean over all tokens of the step, and what is logged of it.

        Args:
            divergence: ``(T,)`` nats.
            mask: ``(T,)`` bool: tokens that count.
            totals: Of the whole optimizer step over all ranks.
        """
        share = self.settings.weight * divergence.masked_fill(~mask, 0.0).sum() / max(totals.tokens, 1)
        sums = MetricSums(
            means={"distillation/divergence": mean_over(divergence, mask)},
            totals={"distillation/loss": share.detach(), "loss": share.detach()},
        )
        return share, sums


def _check_same_tokens(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, name: str) -> None:
    theirs, ours = teacher.get_vocab(), student.get_vocab()
    differing = sorted(token for token in ours if theirs.get(token) != ours[token])
    if differing:
        raise ValueError(
            f"model.distillation.teacher={name!r} has another tokenizer than the policy: {len(differing)} of the policy's "
            f"tokens mean something else to it, {differing[0]!r} for one. Use a teacher of the same family."
        )
