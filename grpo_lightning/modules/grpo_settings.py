"""The settings of GRPO: those of its parts, side by side."""

from __future__ import annotations

from dataclasses import dataclass

from grpo_lightning.algorithm.objective_settings import ObjectiveSettings
from grpo_lightning.generation.base import SamplingSettings
from grpo_lightning.policy.settings import PolicySettings
from grpo_lightning.rollouts.async_rollouts import AsyncRolloutSettings
from grpo_lightning.rollouts.dynamic_sampling import DynamicSampling
from grpo_lightning.rollouts.evaluation import EvaluationSettings
from grpo_lightning.rollouts.partial_rollouts import PartialRollouts
from grpo_lightning.rollouts.source import RolloutSettings
from grpo_lightning.rollouts.turns.settings import ToolSettings
from grpo_lightning.training.distillation.settings import Distillation
from grpo_lightning.training.experience_maker import ExperienceSettings
from grpo_lightning.training.load_balance import LoadBalanceSettings
from grpo_lightning.training.optimization import OptimizationSettings
from grpo_lightning.training.passes import PassSettings
from grpo_lightning.training.reference_passes import ReferenceSettings
from grpo_lightning.training.router_replay import RouterReplaySettings
from grpo_lightning.training.step_advantages import AdvantageSettings
from grpo_lightning.training.updates import UpdateSettings
from grpo_lightning.vision.settings import VisionSettings

NO_DYNAMIC_SAMPLING = DynamicSampling()
NO_PARTIAL_ROLLOUTS = PartialRollouts()


@dataclass(frozen=True, kw_only=True)
class GRPOSettings(
    UpdateSettings,
    PassSettings,
    LoadBalanceSettings,
    RouterReplaySettings,
    OptimizationSettings,
    ExperienceSettings,
    ReferenceSettings,
    AdvantageSettings,
    ObjectiveSettings,
    AsyncRolloutSettings,
    EvaluationSettings,
    SamplingSettings,
    RolloutSettings,
    ToolSettings,
    VisionSettings,
    PolicySettings,
):
    """All of ``model.*``.

    Args:
        dynamic_sampling: What happens to groups whose completions all earn the same (DAPO): nothing, or they are
            dropped or replaced.
        partial_rollouts: Whether a step waits for its longest completions, or leaves some groups to the next one, which goes
            on with them. The importance correction weighs each token by the policy that sampled it.
        max_sampler_mismatch: Stop the run where the sampler's and the trainer's logprobs of the sampled tokens differ
            by more than this on average, in nats: one of them has other weights. Rounding gives 0.00001 in float32 and
            0.01 to 0.06 in bfloat16; with async_rollouts or partial_rollouts, what the steps since changed comes on top. null for no check; there is none
            where top_p, top_k, min_p, repetition_penalty, structured_outputs or replayed groups make them differ.
        distillation: A teacher whose divergence from the policy at the sampled tokens is added to the loss. Without
            rewards to learn from, give one with reward_weights: [0].
        seed: With the step and the prompt, decides every sampled token and dropout mask of the run.
    """

    dynamic_sampling: DynamicSampling = NO_DYNAMIC_SAMPLING
    partial_rollouts: PartialRollouts = NO_PARTIAL_ROLLOUTS
    max_sampler_mismatch: float | None = 0.1
    distillation: Distillation | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Nothing: the settings of each part are made out of these, and check themselves."""
