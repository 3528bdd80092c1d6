"""Tools and environments that a policy talks to over several turns, in the forms that users write them in."""

from grpo_lightning.environments.episode import (
    EnvironmentContractError,
    EnvironmentFault,
    Episode,
    EpisodeFactory,
    ToolResult,
)
from grpo_lightning.environments.observation import behind_prompt

__all__ = [
    "EnvironmentContractError",
    "EnvironmentFault",
    "Episode",
    "EpisodeFactory",
    "ToolResult",
    "behind_prompt",
]
