"""Router replay of a run: whether it is asked for, what it is refused with, what it changes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grpo_lightning.numerics.evaluation_mode import evaluating
from grpo_lightning.training.passes import Passes
from grpo_lightning.types import Rollouts


@dataclass(frozen=True, kw_only=True)
class RouterReplaySettings:
    """Whether training sends tokens to the experts that the sampler sent them to.

    Args:
        router_replay: Give each token of a mixture of experts, in the passes for old logprobs and in training, the experts
            that the sampler's routers chose (R3, arXiv:2510.11370); the policy's own routers weigh them. Rounding then moves
            no token to another expert between sampler and trainer. VLLMColocate on a GPU with vLLM 0.32, or
            TransformersGenerator.
    """

    router_replay: bool = False


@torch.no_grad()
def replay_gaps(passes: Passes, rollouts: Rollouts) -> dict[str, Tensor]:
    """``(tokens,)`` nats each: how far the policy is from the sampler with the sampler's experts, and with its own.

    Of the first micro-batch of a step, dropout off, for ``router_replay/logprob_gap`` and ``..._without_replay``.

    Args:
        passes: Over the policy, as it sampled.
        rollouts: Of the step, on the CPU; without routes there is nothing to compare.
    """
    if rollouts.routed_experts is None:
        return {}
    scorer, versions = passes.scorer, {"": rollouts, "_without_replay": replace(rollouts, routed_experts=None)}
    plan = passes.plan(rollouts, torch.arange(rollouts.num_completions))
    gaps = {}
    with evaluating(scorer.model):
        for name, version in versions.items():
            if not plan:  # passes that other ranks' collectives wait for
                scorer.idle()
                continue
            index = rollouts.tokens_of(plan[0])
            gap = (scorer.score(version, plan[0]).logprobs.cpu() - rollouts.sampling_logprobs[index]).abs()
            gaps[f"router_replay/logprob_gap{name}"] = gap[rollouts.completion_mask[index]]
    return gaps
