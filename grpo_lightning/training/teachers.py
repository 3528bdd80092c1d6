"""Teachers of on-policy distillation: what they would have done at every sampled token, and the loss of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from grpo_lightning.algorithm.averaging import StepTotals
from grpo_lightning.algorithm.experience import Experience, Lessons
from grpo_lightning.algorithm.metric_sums import MetricSums, mean_over
from grpo_lightning.numerics.divergence import Likeliest, Side, divergence_per_token, without_autocast_cache
from grpo_lightning.numerics.dtypes import DTYPES
from grpo_lightning.numerics.evaluation_mode import evaluating
from grpo_lightning.numerics.output_head import OutputHead, output_head
from grpo_lightning.policy.loading import load_causal_lm, load_tokenizer
from grpo_lightning.policy.model_config import load_config
from grpo_lightning.policy.policy import Policy
from grpo_lightning.scoring.scorer import Scorer
from grpo_lightning.training.distillation import REFERENCE, SELF, Distillation
from grpo_lightning.training.lessons import lessons_of
from grpo_lightning.training.passes import Passes
from grpo_lightning.training.reference_passes import ReferencePasses
from grpo_lightning.training.server_teacher import ServerTeacher
from grpo_lightning.types import PromptBatch, Rollouts


class Teacher(Protocol):
    """One of them."""

    def start(self, device: torch.device) -> None:
        """Loads weights of its own, once; ``device`` is the policy's."""

    def side(self, lessons: Lessons, rows: Tensor) -> Side | Likeliest:
        """Hidden states at the tokens of the completions ``rows``, and the head behind them; no gradient. Or the likeliest."""


class LoadedTeacher:
    """A frozen model that is scored beside the policy, in the same layout; its prompts once per group too.

    Its tokenizer is read on construction, its weights in ``start``.

    Args:
        name: Directory or hub name.
        settings: Where it is held, and in what.
        policy: Whose tokens it has to understand.
        passes: Over the policy.

    Raises:
        ValueError: If the two tokenizers differ.
    """

    def __init__(self, name: str, settings: Distillation, policy: Policy, passes: Passes) -> None:
        self.name, self.settings, self.passes = name, settings, passes
        load_config(name)
        _check_same_tokens(load_tokenizer(name), policy.tokenizer, name)
        self.scorer: Scorer | None = None

    def start(self, device: torch.device) -> None:
        """See ``Teacher``."""
        if self.scorer is not None:
            return
        place = device if self.settings.device is None else torch.device(self.settings.device)
        dtype = DTYPES[self.settings.dtype or ("float32" if place.type == "cpu" else "bfloat16")]
        model = load_causal_lm(self.name, dtype).requires_grad_(False).eval().to(place)
        self.scorer = Scorer(model, self.passes.temperature, self.passes.layout)

    def side(self, lessons: Lessons, rows: Tensor) -> Side:
        """See ``Teacher``."""
        assert self.scorer is not None
        place = next(self.scorer.model.parameters()).device
        with torch.no_grad():
            hidden = self.scorer.hidden(lessons.rollouts, rows, place)
        return Side(hidden, output_head(self.scorer.model)[1])


class PolicyAsTeacher:
    """The policy's own weights as they are now, without gradient and dropout (SDPO, arXiv:2601.20802).

    Args:
        passes: Over the policy.
    """

    def __init__(self, passes: Passes) -> None:
        self.passes = passes

    def start(self, device: torch.device) -> None:
        """Nothing: the policy is there."""

    def side(self, lessons: Lessons, rows: Tensor) -> Side:
        """See ``Teacher``."""
        return _side_of(self.passes.scorer, lessons.rollouts, rows)


class ReferenceAsTeacher:
    """The run's reference: where training started, or what follows the policy by sync_ref_model (SDFT, arXiv:2601.19897).

    Args:
        reference_passes: Of the run; it starts first.
    """

    def __init__(self, reference_passes: ReferencePasses) -> None:
        self.reference_passes = reference_passes

    def start(self, device: torch.device) -> None:
        """Nothing: the reference is there."""

    @contextmanager
    def _active(self, head: OutputHead) -> Iterator[None]:
        assert self.reference_passes.reference is not None
        with self.reference_passes.reference.active(), evaluating(head.module):
            yield

    def side(self, lessons: Lessons, rows: Tensor) -> Side:
        """See ``Teacher``."""
        reference, scorer = self.reference_passes.reference, self.reference_passes.scorer
        assert reference is not None and scorer is not None
        with reference.active():
            side = _side_of(scorer, lessons.rollouts, rows)
        return Side(side.hidden, side.head, partial(self._active, side.head))


class Teachers:
    """All teachers of a run.

    Args:
        settings: Who they are.
        policy: Whom they teach.
        passes: Over it.
        reference_passes: Over the reference.
        chat_template_kwargs: As for the prompts.

    Raises:
        ValueError: If a teacher has other tokens.
    """

    def __init__(
        self,
        settings: Distillation,
        policy: Policy,
        passes: Passes,
        reference_passes: ReferencePasses,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.settings, self.policy, self.temperature = settings, policy, passes.temperature
        self.chat_template_kwargs = chat_template_kwargs or {}
        own: dict[str, Teacher] = {SELF: PolicyAsTeacher(passes), REFERENCE: ReferenceAsTeacher(reference_passes)}
        own |= {name: ServerTeacher(name, settings, policy, passes.temperature) for name in settings.addresses}
        self.teachers: list[Teacher] = [
            own.get(name) or LoadedTeacher(name, settings, policy, passes) for name in settings.by_name.values()
        ]

    def start(self, device: torch.device) -> None:
        """Loads the weights, once.

        Args:
            device: Of the policy.
        """
        for teacher in self.teachers:
            teacher.start(device)

    def close(self) -> None:
        """Ends what is asked of servers."""
        for teacher in self.teachers:
            if isinstance(teacher, ServerTeacher):
                teacher.server.client.close()

    def taught(self, experience: Experience, batch: PromptBatch) -> Experience:
        """With what the teachers read, where that is not the prompt alone.

        Args:
            experience: Of the step.
            batch: Its prompts, with the columns.
        """
        if self.settings.needed_columns:
            options = (self.policy.tokenizer, self.chat_template_kwargs)
            lessons = lessons_of(self.settings, batch, experience.rollouts, *options)
        else:
            lessons = experience.lessons_or_own
        likeliest = self._asked(lessons) if self.settings.addresses else None
        return replace(experience, lessons=replace(lessons, likeliest=likeliest))

    def rehearsed(self, experience: Experience) -> Experience:
        """With lessons of the size of a step's, for which no server is asked.

        Args:
            experience: Of completions that nobody sampled.
        """
        lessons = experience.lessons_or_own
        return replace(experience, lessons=replace(lessons, likeliest=self._nothing(experience.rollouts)))

    def _nothing(self, rollouts: Rollouts) -> Likeliest:
        tokens, top_k = rollouts.completion_ids.numel(), self.settings.top_k or 0
        return Likeliest(torch.zeros(tokens, top_k, dtype=torch.int64), torch.zeros(tokens, top_k))

    def _asked(self, lessons: Lessons) -> Likeliest:
        """What the servers say of their completions."""
        all_of_them = self._nothing(lessons.rollouts)
        of_row = lessons.teacher[lessons.rollouts.group]
        for number, teacher in enumerate(self.teachers):
            rows = (of_row == number).nonzero()[:, 0]
            if isinstance(teacher, ServerTeacher) and len(rows):
                told, tokens = teacher.told(lessons.rollouts, rows), lessons.rollouts.tokens_of(rows)
                all_of_them.token_ids[tokens], all_of_them.logprobs[tokens] = told.token_ids, told.logprobs
        return all_of_them

    def divergence(self, lessons: Lessons, rows: Tensor, hidden: Tensor, head: OutputHead) -> Tensor:
        """``(T,)`` nats at the tokens of the completions ``rows``; gradient reaches ``hidden`` and ``head``.

        Args:
            lessons: Of the step, on the CPU.
            rows: ``(M,)`` on the CPU.
            hidden: ``(T, H)``, the policy's, each predicting a token.
            head: The policy's.
        """
        which = lessons.teacher[lessons.rollouts.group[rows]]
        of_token = torch.repeat_interleave(which, lessons.rollouts.completion_lengths[rows])
        found, places = [], []
        for number in which.unique().tolist():
            place = (of_token == number).nonzero()[:, 0].to(hidden.device)
            expected = self.teachers[number].side(lessons, rows[which == number])
            student = Side(hidden if len(which.unique()) == 1 else hidden[place], head)
            options = (self.settings.divergence, self.settings.top_k, self.temperature)
            found.append(divergence_per_token(student, expected, *options))
            places.append(place)
        return found[0] if len(found) == 1 else torch.cat(found)[torch.cat(places).argsort()]

    def loss(self, divergence: Tensor, mask: Tensor, totals: StepTotals) -> tuple[Tensor, MetricSums]:
        """The micro-batch's share of ``weight`` times the mean over all tokens of the step, and what is logged of it.

        Args:
            divergence: ``(T,)`` nats.
            mask: ``(T,)`` bool: tokens that count.
            totals: Of the whole optimizer step over all ranks.
        """
        share = self.settings.weight * divergence.masked_fill(~mask, 0.0).sum() / max(totals.tokens, 1)
        sums = MetricSums(
            means={"distillation/divergence": mean_over(divergence, mask)},
            totals={"distillation/loss": share.detach(), "loss": share.detach()},
        )
        return share, sums


def _side_of(scorer: Scorer, rollouts: Rollouts, rows: Tensor) -> Side:
    """Of a model that may be the policy, in the middle of the policy's own pass."""
    place, head = next(scorer.model.parameters()).device, output_head(scorer.model)[1]
    with evaluating(scorer.model), without_autocast_cache():
        hidden = scorer.hidden(rollouts, rows, place)
    return Side(hidden, head, partial(evaluating, head.module))


def _check_same_tokens(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, name: str) -> None:
    theirs, ours = teacher.get_vocab(), student.get_vocab()
    differing = sorted(token for token in ours if theirs.get(token) != ours[token])
    if differing:
        raise ValueError(
            f"model.distillation.teacher={name!r} has another tokenizer than the policy: {len(differing)} of the policy's "
            f"tokens mean something else to it, {differing[0]!r} for one. Use a teacher of the same family."
        )
