"""The lessons of a step: what its teachers read of it, where that is not the prompt alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from grpo_lightning.algorithm.experience import Experience
from grpo_lightning.algorithm.lessons import Lessons
from grpo_lightning.rewards import RewardTable
from grpo_lightning.training.distillation.attempts import check_rewards, told_of_attempts
from grpo_lightning.training.distillation.lessons import lessons_of
from grpo_lightning.training.distillation.settings import Distillation
from grpo_lightning.types import PromptBatch


class LessonMaker:
    """Puts completions behind what their teachers are told.

    Args:
        settings: See there.
        tokenizer: Of the policy.
        chat_template_kwargs: As for the prompts.
        trained_on: Names of the rewards.
        success_reward: The one of them that says whether a completion is correct.

    Raises:
        ValueError: If a teacher is to be shown what no reward finds.
    """

    def __init__(
        self,
        settings: Distillation,
        tokenizer: PreTrainedTokenizerBase,
        chat_template_kwargs: Mapping[str, Any] | None,
        trained_on: Sequence[str],
        success_reward: str,
    ) -> None:
        check_rewards(settings, trained_on, success_reward)
        self.settings, self.tokenizer, self.success_reward = settings, tokenizer, success_reward
        self.chat_template_kwargs = chat_template_kwargs or {}

    def make(self, experience: Experience, batch: PromptBatch, rewards: RewardTable) -> Lessons:
        """The step's; its own prompts where a teacher is told nothing else.

        Args:
            experience: Of the step.
            batch: Its prompts, with the columns.
            rewards: Of its completions.
        """
        settings, rollouts, tokenizer = self.settings, experience.rollouts, self.tokenizer
        if not settings.needed_columns and not settings.told_of_step:
            return experience.lessons_or_own
        attempts = told_of_attempts(settings, rollouts, rewards, self.success_reward, tokenizer)
        return lessons_of(settings, batch, rollouts, tokenizer, self.chat_template_kwargs, attempts)
