"""The auxiliary loss of a mixture of experts, as the model's config or the run's has it."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

from grpo_lightning.algorithm.metric_sums import MetricSums, mean_over
from grpo_lightning.numerics.load_balance import ExpertLoads, load_balance_loss, load_metrics, sum_of_loads
from grpo_lightning.training.passes import Passes
from grpo_lightning.types import Rollouts

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoadBalanceSettings:
    """How much an uneven use of experts costs.

    Args:
        router_aux_loss_coef: Weight of the load-balancing loss of a mixture of experts, over all tokens of prompts and
            completions. null for what the model's config says, 0 for none. With more than one pass per optimizer step it
            takes a forward pass more, in which the step's load is counted.

    Raises:
        ValueError: If it is negative.
    """

    router_aux_loss_coef: float | None = None

    def __post_init__(self) -> None:
        if self.router_aux_loss_coef is not None and self.router_aux_loss_coef < 0:
            raise ValueError(
                f"model.router_aux_loss_coef={self.router_aux_loss_coef} rewards an uneven use of experts. Use 0 or more."
            )


def coefficient(settings: LoadBalanceSettings, config: PretrainedConfig) -> float:
    """The weight of the loss for this model: 0 where there is none.

    Args:
        settings: Of the run.
        config: Of the model; read before its weights.

    Raises:
        ValueError: If the run asks for the loss of a model that has none.
    """
    asked = settings.router_aux_loss_coef
    if not _has_loss(config):
        if asked:
            raise ValueError(
                f"model.router_aux_loss_coef={asked}: {config.model_type} has no load-balancing loss in transformers, "
                "either because it has no experts or because it balances them otherwise. Leave the setting out."
            )
        return 0.0
    own = getattr(config.get_text_config(), "router_aux_loss_coef", None) or 0.0
    return own if asked is None else asked


def _has_loss(config: PretrainedConfig) -> bool:
    """Whether transformers' class for the architecture computes one from what its routers say."""
    text = config.get_text_config()
    if not hasattr(text, "output_router_logits") or not getattr(text, "is_moe", True):
        return False
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return model_class is not None and hasattr(sys.modules[model_class.__module__], "load_balancing_loss_func")


class LoadBalance:
    """Counts what the routers do in an optimizer step, and weighs each pass's share of the loss.

    Args:
        coefficient: Above 0.
        passes: Over the policy.
    """

    def __init__(self, coefficient: float, passes: Passes) -> None:
        self.coefficient, self.passes = coefficient, passes

    @torch.no_grad()
    def of_step(self, rollouts: Rollouts, plan: list[Tensor]) -> ExpertLoads | None:
        """The loads of one optimizer step at the current weights; None where one pass is all there is.

        Args:
            rollouts: On the CPU.
            plan: The completions of each pass of this rank; empty ones for passes that only other ranks need.
        """
        replica = self.passes.replica
        if replica.count == 1 and len(plan) == 1:
            return None
        return sum_of_loads(replica.of_all(self.passes.expert_loads(rollouts, plan)))

    def loss(self, loads: ExpertLoads, of_step: ExpertLoads | None) -> tuple[Tensor, MetricSums]:
        """The pass's share of the loss, and what is logged of the step.

        Args:
            loads: Of the pass.
            of_step: Of the optimizer step, on any device; None for those of the pass.
        """
        whole = (loads if of_step is None else of_step).to(loads.counts.device)
        share = self.coefficient * load_balance_loss(loads, whole)
        seen = torch.ones(1, dtype=torch.bool, device=share.device)
        means = {name: mean_over(value, seen) for name, value in load_metrics(whole).items()}
        return share, MetricSums(totals={"loss": share.detach()}, means=means)


def make_load_balance(settings: LoadBalanceSettings, passes: Passes) -> LoadBalance | None:
    """The part, or None for a model without experts and for a weight of 0.

    Args:
        settings: Of the run.
        passes: Over the policy.

    Raises:
        ValueError: If the run asks for the loss of a model that has none.
    """
    weight = coefficient(settings, passes.policy.config)
    return LoadBalance(weight, passes) if weight else None
