"""What a step has found out about its own completions, for a policy that is told of it and teaches itself."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from grpo_lightning.rewards import RewardTable
from grpo_lightning.training.distillation.settings import FEEDBACK, SUCCESS, Distillation
from grpo_lightning.types import Rollouts

logger = logging.getLogger(__name__)


def check_rewards(settings: Distillation, trained_on: Sequence[str], success_reward: str) -> None:
    """Refuses a reward that decides about success and is none of the step's.

    Args:
        settings: See there.
        trained_on: Names of the rewards of a step.
        success_reward: The name of the one that says whether a completion is correct.

    Raises:
        ValueError: With a way out.
    """
    if SUCCESS in settings.places and success_reward not in trained_on:
        raise ValueError(
            f"model.distillation.teacher_prompt shows {{{SUCCESS}}}, and model.success_reward={success_reward!r}, which says "
            "what succeeds, scores held-out prompts alone. Name one of model.rewards, which may have weight 0: "
            f"{', '.join(trained_on)}."
        )


def told_of_attempts(
    settings: Distillation,
    rollouts: Rollouts,
    rewards: RewardTable,
    success_reward: str,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, list[Any]]:
    """What teacher_prompt names of the step, for each of the N completions; None where there is nothing to tell.

    Args:
        settings: See there.
        rollouts: Of the step.
        rewards: Theirs.
        success_reward: The name of the one that says whether a completion is correct.
        tokenizer: Of the policy.

    A step of which no reward logs the feedback's column teaches nothing by it, and warns.
    """
    told: dict[str, list[Any]] = {}
    if SUCCESS in settings.places:
        reached = rewards.values[:, rewards.names.index(success_reward)] >= settings.success_threshold
        texts = tokenizer.batch_decode([ids.tolist() for ids in rollouts.completions()], skip_special_tokens=True)
        shown = first_success_of_another(rollouts.group, reached)
        told[SUCCESS] = [texts[n] if n >= 0 else None for n in shown.tolist()]
    if settings.feedback_column is not None:
        if settings.feedback_column not in rewards.extra:
            logger.warning(
                "model.distillation.feedback_column=%r was logged by no reward of this step, so that it has no feedback. There "
                "are %s; a reward logs one with log_extra(name, values).",
                settings.feedback_column,
                ", ".join(sorted(rewards.extra)) or "none",
            )
        said = rewards.extra.get(settings.feedback_column, [None] * rollouts.num_completions)
        told[FEEDBACK] = [None if each is None or not str(each).strip() else each for each in said]
    return told


def first_success_of_another(group: torch.Tensor, reached: torch.Tensor) -> torch.Tensor:
    """``(N,)`` int64: for each completion the first of its group that succeeded and is not itself; -1 where none is.

    That of SDPO (arXiv:2601.20802): a completion that succeeded may be shown another way, never itself.

    Args:
        group: ``(N,)`` int64.
        reached: ``(N,)`` bool.

    Example:
        >>> group, reached = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([False, True, True, True, False])
        >>> first_success_of_another(group, reached).tolist()
        [1, 2, 1, -1, 3]
    """
    succeeded: dict[int, list[int]] = {}
    for n in reached.nonzero()[:, 0].tolist():
        succeeded.setdefault(int(group[n]), []).append(n)
    shown = [next((m for m in succeeded.get(g, ()) if m != n), -1) for n, g in enumerate(group.tolist())]
    return torch.tensor(shown, dtype=torch.int64)
