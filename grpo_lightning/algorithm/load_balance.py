"""How a mixture of experts spreads tokens over its experts, and the auxiliary loss that keeps it from using few."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ExpertLoads:
    """Sums over tokens of what L routers chose among E experts each; sums of passes and of ranks add up."""

    counts: Tensor
    """(L, E) int64: how often each expert was among the top k of its router."""
    probabilities: Tensor
    """(E,) float32: the routers' probabilities, over all layers and tokens. The only part that carries gradient."""
    decisions: Tensor
    """Scalar int64: tokens times layers."""

    def __add__(self, other: ExpertLoads) -> ExpertLoads:
        return ExpertLoads(
            self.counts + other.counts, self.probabilities + other.probabilities, self.decisions + other.decisions
        )

    def to(self, device: torch.device | str) -> ExpertLoads:
        """The same there, without gradient."""
        return ExpertLoads(*(part.detach().to(device) for part in (self.counts, self.probabilities, self.decisions)))


def expert_loads(router_logits: Sequence[Tensor], times: Tensor, top_k: int) -> ExpertLoads:
    """What the routers of one pass did with its tokens.

    Args:
        router_logits: ``(T, E)`` of each layer that has a router.
        times: ``(T,)`` int64: how many sequences each token stands for; 0 for padding, more than 1 where sequences share a
            prompt.
        top_k: Experts that a token goes to.
    """
    counts, probabilities = [], []
    for logits in router_logits:
        chances = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        chosen = torch.zeros_like(chances, dtype=torch.bool).scatter_(1, chances.topk(top_k, dim=-1).indices, True)
        counts.append((chosen * times[:, None]).sum(0))
        probabilities.append((chances * times[:, None]).sum(0))
    return ExpertLoads(torch.stack(counts), torch.stack(probabilities).sum(0), times.sum() * len(router_logits))


def sum_of_loads(parts: Sequence[ExpertLoads | None]) -> ExpertLoads | None:
    """All together; None where there is none."""
    total = None
    for part in parts:
        if part is not None:
            total = part if total is None else total + part
    return total


def load_balance_loss(loads: ExpertLoads, of_step: ExpertLoads) -> Tensor:
    """A pass's share of ``E * sum_e f_e P_e``, Eq. 4 to 6 of the Switch Transformer (arXiv:2101.03961).

    ``f_e`` is how many of expert e's top-k choices a token makes on average, ``P_e`` its mean probability, both over all
    tokens and layers of the optimizer step, as in transformers' ``load_balancing_loss_func``. ``f`` has no gradient and is the
    step's, so the shares of any split into passes add up to the same loss and the same gradient.

    Args:
        loads: Of the pass; gradient reaches its probabilities.
        of_step: Of the whole step, this pass included, over all ranks.

    Returns:
        Scalar; an even load gives k in all. 0 for a step without tokens.
    """
    decisions = of_step.decisions.clamp(min=1)
    fractions = of_step.counts.sum(0) / decisions
    return len(fractions) * (fractions * loads.probabilities / decisions).sum()


def load_metrics(of_step: ExpertLoads) -> dict[str, Tensor]:
    """``(1,)`` each, as ``router/...``: what shows that experts fall out of use, over the optimizer step.

    ``load_max_share`` is the largest share of a layer's tokens times k that one expert gets, in the worst layer: 1 / E is even.
    ``load_entropy`` is the entropy of these shares as a part of its maximum, log E, on average over layers: 1 is even.
    """
    counts = of_step.counts.double()
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    entropy = torch.special.entr(shares).sum(1) / math.log(max(shares.shape[1], 2))
    return {
        "router/aux_loss": load_balance_loss(of_step, of_step).detach().reshape(1),
        "router/load_max_share": shares.max().reshape(1),
        "router/load_entropy": entropy.mean().reshape(1),
    }
