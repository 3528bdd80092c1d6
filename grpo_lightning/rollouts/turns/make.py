"""The source of rollouts that the settings ask for: of one turn, or of several."""

from __future__ import annotations

import logging

from grpo_lightning.environments.forms import open_episodes
from grpo_lightning.environments.import_path import imported
from grpo_lightning.generation.base import SamplingSettings
from grpo_lightning.policy.policy import Policy
from grpo_lightning.rewards.base import asks_for
from grpo_lightning.rollouts.source import RolloutSettings, RolloutSource
from grpo_lightning.rollouts.turns.function_source import FunctionSource
from grpo_lightning.rollouts.turns.settings import ToolSettings
from grpo_lightning.rollouts.turns.source import TurnSource

logger = logging.getLogger(__name__)
READ_ENVIRONMENTS = ("environments", "final_rewards")


def make_source(
    settings: RolloutSettings, talks_to: ToolSettings, sampling: SamplingSettings, policy: Policy, seed: int
) -> RolloutSource:
    """What samples and scores.

    Args:
        settings: Generator and rewards.
        talks_to: Tools and environment; without them a rollout is one turn.
        sampling: How completions are drawn.
        policy: What they are drawn from.
        seed: Of the run.

    Raises:
        EnvironmentContractError: If a tool or an environment cannot be used.
    """
    if talks_to.rollout_func is not None:
        function = talks_to.rollout_func
        found = imported(function, "model.rollout_func") if isinstance(function, str) else function
        return FunctionSource(settings, sampling, policy, seed, found)
    turns = talks_to.turns
    make_episode = open_episodes(
        talks_to.tools,
        talks_to.environment,
        turns.call_time_limit,
        turns.max_tool_response_length,
        turns.tool_exceptions,
    )
    if make_episode is None:
        return RolloutSource(settings, sampling, policy, seed)
    source = TurnSource(settings, sampling, policy, seed, make_episode, turns, make_episode.has_tools)
    read = any(asks_for(reward, name) for reward in source.reward_runner.rewards for name in READ_ENVIRONMENTS)
    if make_episode.rewarding and not read:
        logger.warning(
            "%s.get_reward scores rollouts, and none of the rewards (%s) asks for it. TRL adds it with weight 1; here, add "
            "environment to model.rewards.",
            *(" and ".join(make_episode.rewarding), ", ".join(source.reward_runner.names)),
        )
    return source
