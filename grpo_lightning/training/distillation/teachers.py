"""Teachers of on-policy distillation: what they would have done at every sampled token, and the loss of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, cast

import torch
from torch import Tensor

from grpo_lightning.algorithm.averaging import StepTotals
from grpo_lightning.algorithm.experience import Experience
from grpo_lightning.algorithm.lessons import NOBODY, Lessons
from grpo_lightning.algorithm.metric_sums import MetricSums, mean_over
from grpo_lightning.algorithm.sampled_divergence import clipped_importance, sampled_token_loss
from grpo_lightning.algorithm.token_batch import TokenBatch
from grpo_lightning.numerics.device_copy import to_device
from grpo_lightning.numerics.divergence import Divergence, Likeliest, Side, divergence_per_token, without_autocast_cache
from grpo_lightning.numerics.output_head import OutputHead
from grpo_lightning.policy.positions import positions_of
from grpo_lightning.rewards import RewardTable
from grpo_lightning.training.distillation.lesson_lengths import check_lengths, without_too_long
from grpo_lightning.training.distillation.lesson_maker import LessonMaker
from grpo_lightning.training.distillation.loaded_teacher import LoadedTeacher
from grpo_lightning.training.distillation.own_teachers import PolicyAsTeacher, ReferenceAsTeacher
from grpo_lightning.training.distillation.server_teacher import ServerTeacher
from grpo_lightning.training.distillation.settings import REFERENCE, SAMPLED, SELF, Distillation
from grpo_lightning.training.passes import Passes
from grpo_lightning.training.reference_passes import ReferencePasses
from grpo_lightning.types import PromptBatch, Rollouts


class Teacher(Protocol):
    """One of them."""

    def start(self) -> None:
        """Loads weights of its own, once."""

    def side(self, lessons: Lessons, rows: Tensor) -> Side | Likeliest:
        """Hidden states at the tokens of the completions ``rows``, and the head behind them; no gradient. Or the likeliest."""


class Teachers:
    """All teachers of a run.

    Args:
        settings: Who they are.
        lesson_maker: Makes what they read.
        passes: Over the policy, which they teach.
        reference_passes: Over the reference.

    Raises:
        ValueError: If a teacher has other tokens.
    """

    def __init__(
        self, settings: Distillation, lesson_maker: LessonMaker, passes: Passes, reference_passes: ReferencePasses
    ) -> None:
        self.lesson_maker = lesson_maker
        self.settings, self.policy, self.temperature = settings, passes.policy, passes.temperature
        own: dict[str, Teacher] = {SELF: PolicyAsTeacher(passes), REFERENCE: ReferenceAsTeacher(reference_passes)}
        own |= {name: ServerTeacher(name, settings, passes.policy, passes.temperature) for name in settings.addresses}
        self.teachers: list[Teacher] = [
            own.get(name) or LoadedTeacher(name, settings, passes) for name in settings.by_name.values()
        ]

    def start(self) -> None:
        """Loads the weights, once."""
        for teacher in self.teachers:
            teacher.start()

    def close(self) -> None:
        """Ends what is asked of servers."""
        for teacher in self.teachers:
            if isinstance(teacher, ServerTeacher):
                teacher.server.client.close()

    def taught(self, experience: Experience, batch: PromptBatch, rewards: RewardTable) -> Experience:
        """With what the teachers read, where that is not the prompt alone.

        Args:
            experience: Of the step.
            batch: Its prompts, with the columns.
            rewards: Of its completions.
        """
        lessons = self._readable(self.lesson_maker.make(experience, batch, rewards), batch)
        likeliest = self._asked(lessons) if self.settings.addresses else None
        return replace(experience, lessons=replace(lessons, likeliest=likeliest))

    def _readable(self, lessons: Lessons, batch: PromptBatch) -> Lessons:
        """Of lengths that the teachers can read; servers say themselves what is wrong with the data."""
        own = positions_of(self.policy.config)
        limits = [getattr(teacher, "positions", own) for teacher in self.teachers]
        if self.settings.told_of_step:
            return without_too_long(lessons, limits)
        of_loaded = [
            None if isinstance(t, ServerTeacher) else limit for t, limit in zip(self.teachers, limits, strict=True)
        ]
        check_lengths(lessons, of_loaded, list(self.settings.by_name.values()), batch.uids)
        return lessons

    def rehearsed(self, experience: Experience) -> Experience:
        """With lessons of the size of a step's, for which no server is asked.

        Args:
            experience: Of completions that nobody sampled.
        """
        lessons = experience.lessons_or_own
        return replace(experience, lessons=replace(lessons, likeliest=self._nothing(experience.rollouts)))

    def _nothing(self, rollouts: Rollouts) -> Likeliest:
        size = rollouts.completion_ids.numel(), self.settings.told_tokens
        return Likeliest(torch.zeros(size, dtype=torch.int64), torch.zeros(size))

    def _asked(self, lessons: Lessons) -> Likeliest:
        """What the servers say of their completions."""
        all_of_them = self._nothing(lessons.rollouts)
        of_row = lessons.teacher_of(torch.arange(lessons.rollouts.num_completions))
        for number, teacher in enumerate(self.teachers):
            rows = (of_row == number).nonzero()[:, 0]
            if isinstance(teacher, ServerTeacher) and len(rows):
                told, tokens = teacher.told(lessons.rollouts, rows), lessons.rollouts.tokens_of(rows)
                all_of_them.token_ids[tokens], all_of_them.logprobs[tokens] = told.token_ids, told.logprobs
        return all_of_them

    def teach_alone(self, experience: Experience, rows: Tensor) -> bool:
        """Whether the divergence is all that has a gradient at these completions, whose advantages say that rewards have none."""
        if self.settings.divergence == SAMPLED or bool(experience.has_advantage[rows].any()):
            return False
        return bool((experience.lessons_or_own.teacher_of(rows) != NOBODY).any())

    def divergence(self, experience: Experience, rows: Tensor, hidden: Tensor, head: OutputHead) -> Tensor:
        """``(T,)`` nats at the tokens of the completions ``rows``; gradient reaches ``hidden`` and ``head``.

        Of ``sampled_token``, the teachers' logprobs of the tokens, without gradient.

        Args:
            experience: Of the step.
            rows: ``(M,)`` on the CPU.
            hidden: ``(T, H)``, the policy's, each predicting a token.
            head: The policy's.
        """
        lessons = experience.lessons_or_own
        which, of_token = lessons.teacher_of(rows), lessons.teacher_of_tokens(rows)
        found, places = [], []
        for number in which.unique().tolist():
            place = to_device((of_token == number).nonzero()[:, 0], hidden.device)
            places.append(place)
            if number == NOBODY:
                found.append(torch.zeros(len(place), device=hidden.device))
                continue
            expected = self.teachers[number].side(lessons, rows[which == number])
            if self.settings.divergence == SAMPLED:
                found.append(to_device(self._told(lessons, rows[which == number], expected), hidden.device))
                continue
            student = Side(hidden if len(which.unique()) == 1 else hidden[place], head)
            kind = cast(Divergence, self.settings.divergence)
            found.append(divergence_per_token(student, expected, kind, self.settings.top_k, self.temperature))
        return found[0] if len(found) == 1 else torch.cat(found)[torch.cat(places).argsort()]

    def _told(self, lessons: Lessons, rows: Tensor, side: Side | Likeliest) -> Tensor:
        """``(T,)`` nats of a teacher's sampled tokens."""
        if isinstance(side, Likeliest):
            return side.logprobs[:, 0]
        targets = lessons.rollouts.completion_ids[lessons.rollouts.tokens_of(rows)]
        with torch.no_grad(), without_autocast_cache(), side.context():
            targets = to_device(targets, side.hidden.device)
            return side.head.logprobs(side.hidden, targets, temperature=self.temperature)[0]

    def loss(
        self,
        experience: Experience,
        rows: Tensor,
        scores: tuple[Tensor, Tensor],
        tokens: TokenBatch,
        totals: StepTotals,
    ) -> tuple[Tensor, MetricSums]:
        """The micro-batch's share of ``weight`` times the mean over all tokens of the step, and what is logged of it.

        Tokens that nobody teaches count as 0 in the mean, and not at all in what is logged of the divergence.

        Args:
            experience: Of the step.
            rows: ``(M,)`` on the CPU.
            scores: What ``divergence`` gave, and the policy's logprobs of the tokens, ``(T,)`` nats each.
            tokens: Of these completions, with the mask of those that count.
            totals: Of the whole optimizer step over all ranks.
        """
        (divergence, logprobs), mask, lessons = scores, tokens.mask, experience.lessons_or_own
        means: dict[str, Tensor] = {}
        if self.settings.told_of_step:  # else everybody is
            is_taught = lessons.teacher_of(rows) != NOBODY
            means["distillation/taught"] = mean_over(is_taught.float(), torch.ones_like(is_taught))
            mask = mask & to_device(lessons.teacher_of_tokens(rows) != NOBODY, mask.device)
        per_token = divergence
        if self.settings.divergence == SAMPLED:
            per_token, divergence = sampled_token_loss(logprobs, divergence), (logprobs - divergence).detach()
        if self.settings.is_clip is not None and tokens.old_logprobs is not None:
            per_token = per_token * clipped_importance(logprobs, tokens.old_logprobs, self.settings.is_clip)
        share = self.settings.weight * per_token.masked_fill(~mask, 0.0).sum() / max(totals.tokens, 1)
        means["distillation/divergence"] = mean_over(divergence, mask)
        return share, MetricSums(means=means, totals={"distillation/loss": share.detach(), "loss": share.detach()})
