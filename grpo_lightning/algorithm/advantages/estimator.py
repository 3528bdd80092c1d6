"""The advantages of a step, by the rule of ``model.advantages`` and the settings beside it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from grpo_lightning.algorithm.advantages.registry import AGGREGATIONS, AdvantageRule, AdvantageSpec, make_rule
from grpo_lightning.algorithm.advantages.result import Advantages, TotalRewards
from grpo_lightning.algorithm.advantages.scored_step import ScoredStep
from grpo_lightning.algorithm.advantages.statistics import group_std
from grpo_lightning.algorithm.advantages.token_rewards import CompletionTokens
from grpo_lightning.algorithm.advantages.totals import PARTIAL_POLICIES, combine_rewards, is_partly_scored
from grpo_lightning.algorithm.choice import name_of
from grpo_lightning.algorithm.setting_checks import check_known

SCALES = ("group", "batch", "none")


@dataclass(frozen=True)
class AdvantageEstimator:
    """Settings of the advantages, with TRL's names and defaults, and the estimate itself.

    Example:
        >>> estimate = AdvantageEstimator(scale_rewards="none")
        >>> estimate(torch.tensor([[1.0], [0.0], [5.0], [5.0]]), torch.tensor([0, 0, 1, 1]), torch.ones(1)).advantages
        tensor([ 0.5000, -0.5000,  0.0000,  0.0000])
    """

    scale_rewards: str | bool = "group"
    """Divide by the standard deviation of the group (group or True), of the batch (batch), or not (none or False)."""
    multi_objective_aggregation: str = "sum_then_normalize"
    """Add rewards and compare totals (sum_then_normalize), or compare each reward first (normalize_then_sum, GDPO)."""
    partial_rewards: str = "sum"
    """A completion with some rewards None: sum (add what is there, as TRL), renormalize (scale up) or drop."""
    advantages: AdvantageSpec = "grpo"
    """grpo, for which the first two are; rloo, reinforce_plus_plus_baseline, opo, maxrl; or a rule of one's own."""
    rule: AdvantageRule = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.scale_rewards, bool):
            object.__setattr__(self, "scale_rewards", "group" if self.scale_rewards else "none")
        check_known(self, "scale_rewards", SCALES)
        check_known(self, "multi_objective_aggregation", AGGREGATIONS)
        check_known(self, "partial_rewards", PARTIAL_POLICIES)
        aggregation, partial = self.multi_objective_aggregation, self.partial_rewards
        object.__setattr__(self, "rule", make_rule(self.advantages, str(self.scale_rewards), aggregation, partial))

    def __call__(
        self, rewards_per_func: Tensor, groups: Tensor, weights: Tensor, tokens: CompletionTokens | None = None
    ) -> Advantages:
        """Advantages of the whole step's completions; computed in float64, returned in the dtype of ``rewards_per_func``.

        Args:
            rewards_per_func: ``(N, R)`` rewards, NaN for None, N over all ranks.
            groups: ``(N,)`` integers: completions with the same id are compared; ids differ between ranks.
            weights: ``(R,)``, one per reward.
            tokens: How long completions are, and rewards of single tokens; None for one token each.

        Raises:
            ValueError: If the rule gives another shape than ``(N,)`` or ``(T,)``, or cannot tell tokens apart where
                rewards do.
        """
        dtype, rewards_per_func, weights = rewards_per_func.dtype, rewards_per_func.double(), weights.double()
        tokens = tokens or CompletionTokens.single(len(rewards_per_func))
        totals = self.totals(rewards_per_func, groups, weights)
        rewards = totals.rewards
        if self.partial_rewards == "drop":
            rewards_per_func = _dropped(rewards_per_func, totals.partly_scored)
        token_rewards = self._token_rewards(tokens, rewards)
        step = ScoredStep(rewards, groups, tokens.lengths, tokens.sizes, rewards_per_func, weights, token_rewards)
        advantages = self.rule(step)
        if not isinstance(advantages, Tensor):
            raise ValueError(
                f"model.advantages={name_of(self.advantages)!r} gave a {type(advantages).__name__}. Return a torch.Tensor with "
                "one value per completion, or one per token."
            )
        advantages = advantages.nan_to_num(nan=0.0)
        if advantages.shape not in ((len(rewards_per_func),), (int(tokens.sizes.sum()),)):
            raise ValueError(
                f"model.advantages={name_of(self.advantages)!r} gave a tensor of shape {tuple(advantages.shape)} for {len(rewards_per_func)} completions of "
                f"{int(tokens.sizes.sum())} tokens. Return one value per completion, or one per token."
            )
        stds = totals.group_stds.to(dtype)
        return Advantages(rewards.to(dtype), stds, totals.partly_scored, advantages.to(dtype))

    def totals(self, rewards_per_func: Tensor, groups: Tensor, weights: Tensor) -> TotalRewards:
        """What the rule compares, of any number of whole groups, in float64; arguments as of a call."""
        rewards_per_func, weights = rewards_per_func.double(), weights.double()
        partly_scored = is_partly_scored(rewards_per_func, groups, weights)
        policy = self.partial_rewards
        if policy == "drop":
            rewards_per_func, policy = _dropped(rewards_per_func, partly_scored), "sum"
        rewards = combine_rewards(rewards_per_func, weights, policy)
        return TotalRewards(rewards, group_std(rewards, groups), partly_scored)

    def _token_rewards(self, tokens: CompletionTokens, rewards: Tensor) -> Tensor | None:
        if tokens.rewards is None:
            return None
        if not getattr(self.rule, "uses_token_rewards", False):
            raise ValueError(
                "A reward returned a list for a completion, which model.advantages="
                f"{self.advantages!r} would ignore (for its normalize_then_sum, if it is grpo). Use the usual grpo, a rule "
                "with the attribute uses_token_rewards = True, or one number per completion."
            )
        if self.partial_rewards == "renormalize":
            raise ValueError(
                "A reward returned a list for a completion, whose entries model.partial_rewards=renormalize cannot scale "
                "up. Use sum or drop."
            )
        return tokens.rewards.masked_fill(rewards.isnan().repeat_interleave(tokens.sizes), torch.nan)


def _dropped(rewards_per_func: Tensor, partly_scored: Tensor) -> Tensor:
    """(N, R): NaN for the completions that only some rewards scored."""
    return rewards_per_func.masked_fill(partly_scored.unsqueeze(1), torch.nan)
