"""The source that steps train on: what samples, wrapped as the settings ask."""

from __future__ import annotations

from grpo_lightning.modules.grpo_settings import GRPOSettings
from grpo_lightning.rollouts.async_rollouts import AsyncRollouts
from grpo_lightning.rollouts.base import Source
from grpo_lightning.rollouts.dynamic_sampling import DynamicSampler
from grpo_lightning.rollouts.dynamic_source import DynamicSource
from grpo_lightning.rollouts.further_prompts import FurtherPrompts
from grpo_lightning.rollouts.noted_source import NotedSource
from grpo_lightning.rollouts.partial_rollouts import PartialSource
from grpo_lightning.rollouts.source import RolloutSource


def staleness_of(settings: GRPOSettings) -> str:
    """The setting because of which tokens come from older weights; empty where they do not."""
    if settings.async_rollouts:
        return f"model.async_rollouts={settings.async_rollouts}"
    carry_over = settings.partial_rollouts.carry_over
    return f"model.partial_rollouts.carry_over={carry_over}" if carry_over else ""


def most_prompts(settings: GRPOSettings, num_prompts: int) -> int:
    """Of a step of ``num_prompts`` new ones, with the groups that may come from earlier steps."""
    return num_prompts + settings.dynamic_sampling.replay_groups + settings.partial_rollouts.most_left(num_prompts)


def step_sources(
    settings: GRPOSettings, source: RolloutSource, success: str, further: FurtherPrompts
) -> tuple[NotedSource, Source]:
    """What notes how each prompt did, and what steps sample from: the same, or what chooses among its groups.

    Args:
        settings: Of the module.
        source: Samples and scores; it may sample the next batch during a step, or carry completions over.
        success: The reward that says whether a completion is correct.
        further: Prompts beside those of a step, for sources that sample some.
    """
    inner: Source = source
    if settings.async_rollouts:
        inner = AsyncRollouts(source, further.of_next_step, settings.num_updates)
    elif settings.partial_rollouts.carry_over:
        inner = PartialSource(source, settings.partial_rollouts)
    noted = NotedSource(inner, source, success)
    if settings.dynamic_sampling.mode == "off":
        return noted, noted
    sampler = DynamicSampler(settings.dynamic_sampling, settings.seed, source.composed, settings.per_reward)
    return noted, DynamicSource(noted, source, sampler, further.dataset)
