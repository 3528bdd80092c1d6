"""The source that steps train on: what samples, wrapped as the settings ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lightning.pytorch import Trainer

from grpo_lightning.datamodules.prompts import PromptDataset
from grpo_lightning.modules.grpo_settings import GRPOSettings
from grpo_lightning.rollouts.async_rollouts import AsyncRollouts, following_batch
from grpo_lightning.rollouts.base import Source
from grpo_lightning.rollouts.dynamic_sampling import DynamicSampler
from grpo_lightning.rollouts.dynamic_source import DynamicSource
from grpo_lightning.rollouts.noted_source import NotedSource
from grpo_lightning.rollouts.partial_rollouts import PartialSource
from grpo_lightning.rollouts.source import RolloutSource


@dataclass(frozen=True)
class Surroundings:
    """What is known of the run once training starts."""

    trainer: Callable[[], Trainer]
    ranks: Callable[[], tuple[int, int]]
    """Number of this rank, and how many there are."""
    prompts: Callable[[], PromptDataset]
    """All that the run trains on."""


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
    settings: GRPOSettings,
    source: RolloutSource,
    num_updates: int,
    success: str,
    per_reward: bool,
    around: Surroundings,
) -> tuple[NotedSource, Source]:
    """What notes how each prompt did, and what steps sample from: the same, or what chooses among its groups.

    Args:
        settings: Of the module.
        source: Samples and scores; it may sample the next batch during a step, or carry completions over.
        num_updates: Optimizer steps of a GRPO step.
        success: The reward that says whether a completion is correct.
        per_reward: Whether each reward is normalised for itself.
        around: The run.
    """
    inner: Source = source
    if settings.async_rollouts:
        inner = AsyncRollouts(source, lambda: following_batch(around.trainer(), num_updates), num_updates)
    elif settings.partial_rollouts.carry_over:
        inner = PartialSource(source, settings.partial_rollouts, around.ranks)
    noted = NotedSource(inner, source, success)
    if settings.dynamic_sampling.mode == "off":
        return noted, noted
    sampler = DynamicSampler(settings.dynamic_sampling, settings.seed, per_reward)
    return noted, DynamicSource(noted, source, sampler, around.prompts, around.ranks)
