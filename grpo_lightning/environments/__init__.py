"""Tools and environments that a policy talks to over several turns, in the forms that users write them in."""

from grpo_lightning.environments.episode import EnvironmentFault, Episode, EpisodeFactory, ToolResult

__all__ = ["EnvironmentFault", "Episode", "EpisodeFactory", "ToolResult"]
