"""What is worked out of several settings: one file per subject, each with functions that write into a Migration."""

from collections.abc import Callable

from grpo_lightning.migration.compose.checkpoints import compose_checkpoints, compose_evaluation
from grpo_lightning.migration.compose.data import compose_data
from grpo_lightning.migration.compose.logs import compose_logging
from grpo_lightning.migration.compose.optimizer import compose_optimizer, compose_schedule
from grpo_lightning.migration.compose.policy import compose_policy
from grpo_lightning.migration.compose.rewards import compose_rewards
from grpo_lightning.migration.compose.run import compose_length, compose_strategy
from grpo_lightning.migration.compose.sampling import compose_correction, compose_generator, compose_sampling
from grpo_lightning.migration.compose.steps import compose_batches
from grpo_lightning.migration.compose.tools import compose_tools
from grpo_lightning.migration.migration import Migration

COMPOSERS: list[Callable[[Migration], None]] = [
    compose_batches,  # first: others count in its steps
    compose_policy,
    compose_data,
    compose_sampling,
    compose_correction,
    compose_rewards,
    compose_tools,  # behind the rewards, to which an environment may add its own
    compose_generator,
    compose_optimizer,
    compose_schedule,
    compose_length,
    compose_strategy,
    compose_logging,
    compose_checkpoints,
    compose_evaluation,
]
"""In the order in which they are called."""
