"""Tools and environments that a policy talks to over several turns, in the forms that users write them in."""

from grpo_lightning.environments.episode import (
    EnvironmentContractError,
    EnvironmentFault,
    Episode,
    EpisodeFactory,
    ToolMistake,
    ToolResult,
)
from grpo_lightning.environments.forms import DEADLINE, OUTPUT_LIMIT, open_episodes
from grpo_lightning.messages import behind_prompt

__all__ = [
    "open_episodes",
    "DEADLINE",
    "OUTPUT_LIMIT",
    "EnvironmentContractError",
    "EnvironmentFault",
    "Episode",
    "EpisodeFactory",
    "ToolMistake",
    "ToolResult",
    "behind_prompt",
]
