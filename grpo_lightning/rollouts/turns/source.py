"""The source of rollouts of several turns."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from grpo_lightning.concurrency.event_loop import EventLoopThread
from grpo_lightning.datamodules.prompts.chat_templates import TEMPLATE_KWARGS, TOOLS, row_template_kwargs
from grpo_lightning.environments import EpisodeFactory
from grpo_lightning.errors import ExplainedError, RefusedRowError
from grpo_lightning.generation.base import SamplingSettings
from grpo_lightning.generation.turns import open_turns, waits_for_all
from grpo_lightning.policy.policy import Policy
from grpo_lightning.rollouts.source import OnRolloutCompleted, RolloutSettings, RolloutSource
from grpo_lightning.rollouts.turns.chat_form import ChatForm
from grpo_lightning.rollouts.turns.collect import collect
from grpo_lightning.rollouts.turns.rollout import Assignment, PlayedRollout, RolloutPlayer
from grpo_lightning.rollouts.turns.settings import Turns
from grpo_lightning.rollouts.turns.template_note import template_note
from grpo_lightning.rollouts.turns.turn_loop import TurnLoop
from grpo_lightning.seeds import derive_seed
from grpo_lightning.types import PromptBatch, Rollouts

logger = logging.getLogger(__name__)
WINDOW = 64
"""Rollouts, at least, over which the share is taken."""


class EnvironmentsFailedError(ExplainedError, RuntimeError):
    """Too many rollouts ended by a fault of their environment; the text holds the first one."""


class FaultWatch:
    """The recent faults of environments.

    Args:
        max_share: Stops above this share of the latest ``WINDOW`` rollouts, and where every rollout has failed.
    """

    def __init__(self, max_share: float) -> None:
        self.max_share = max_share
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        self._one_worked = False
        self._first = ""

    def record(self, faults: list[str]) -> None:
        """Takes in the rollouts of a call, in order: what went wrong in each, an empty text for nothing.

        Raises:
            EnvironmentsFailedError: If too many failed.
        """
        if not faults:
            return
        found = [fault for fault in faults if fault]
        self._one_worked |= len(found) < len(faults)
        self._recent.extend(bool(fault) for fault in faults)
        if found and not self._first:
            self._first = found[0]
            logger.warning(
                "The environment failed in %d of %d rollouts, which count for nothing. This is shown once, and counted in "
                "rollouts/stop/fault. The first fault was: %s",
                *(len(found), len(faults), self._first),
            )
        failed, seen = sum(self._recent), len(self._recent)
        if not self._one_worked or (seen == WINDOW and failed > self.max_share * seen):
            raise EnvironmentsFailedError(
                f"The environment failed in {failed} of the last {seen} rollouts, so there is too little to train on "
                f"(model.turns.max_fault_share={self.max_share:g}). The first fault was: {self._first}"
            )


CLOSE_SECONDS = 30.0
"""How long environments may take to be let go of."""


def text_prompts(which: str) -> str:
    """What is said of prompts that are no conversations.

    Args:
        which: With its verb.
    """
    return (
        f"model.tools and model.environment talk to the policy in messages, and {which} text. Set "
        "data.converter_args.conversational=true, or use a dataset of conversations."
    )


class TurnSource(RolloutSource):
    """Samples rollouts in which tools or an environment answer the policy.

    Args:
        settings: Generator and rewards.
        sampling: How completions are drawn; max_completion_length holds for all turns together.
        policy: What they are drawn from.
        seed: Of the run.
        make_episode: Gives each rollout what it talks to.
        turns: Budgets.
        has_tools: Whether there are tools to call, so that the way in which calls are written must be known.

    Raises:
        ValueError: If the tokenizer's chat template or the generator cannot do it.
    """

    def __init__(
        self,
        settings: RolloutSettings,
        sampling: SamplingSettings,
        policy: Policy,
        seed: int,
        make_episode: EpisodeFactory,
        turns: Turns,
        has_tools: bool = True,
    ) -> None:
        super().__init__(settings, sampling, policy, seed)
        self.make_episode, self.turns, self.has_tools = make_episode, turns, has_tools
        self._is_said = False
        self.template_kwargs = dict(settings.chat_template_kwargs or {})
        form = self._form(frozenset({policy.tokenizer.eos_token_id} - {None}))
        if has_tools:
            _ = form.format_name  # what it refuses is said before weights load
        if self.generator.tensor_parallel_size > 1:
            raise ValueError(
                f"model.generator.init_args.tensor_parallel_size={self.generator.tensor_parallel_size}: ranks that share an "
                "engine make the same calls, and with model.tools or model.environment each has its own turns. Use "
                "tensor_parallel_size=1, or VLLMServer."
            )
        self.faults = FaultWatch(turns.max_fault_share)
        self._loop = EventLoopThread()

    @property
    def longest_wait(self) -> float:
        """With that for tools and environments."""
        return self.turns.longest_wait(self.generator.longest_wait) + self.reward_runner.longest_wait

    def _form(self, end_ids: frozenset[int]) -> ChatForm:
        return ChatForm(self.policy.tokenizer, end_ids, self.template_kwargs, self.turns.tool_call_format)

    @torch.no_grad()
    def generate(
        self,
        batch: PromptBatch,
        sampling: SamplingSettings,
        seeds: list[int],
        on_completed: OnRolloutCompleted | None = None,
    ) -> Rollouts:
        """G rollouts of each prompt; see ``RolloutSource.generate``.

        Raises:
            EnvironmentsFailedError: If too many environments failed.
        """
        form = self._form(self.policy.end_ids)
        self._say_once(form)
        positions = getattr(self.policy.config.get_text_config(), "max_position_embeddings", None)
        context = self.generator.max_model_length or positions
        player = RolloutPlayer(self.make_episode, form, self.turns, sampling.max_completion_length, context)
        assignments = self._assignments(batch, sampling.num_generations, seeds)
        if not assignments:
            return collect([], [], sampling.num_generations, 0)
        played: list[PlayedRollout] = []
        for part in self._at_once(assignments):
            first, loop = len(played), TurnLoop[PlayedRollout](self._loop)

            def on_played(n: int, one: PlayedRollout, first: int = first) -> None:
                if on_completed is not None:
                    on_completed(first + n, one.trail.ids, one.conversation)

            sampler = open_turns(self.generator, sampling, len(part), context, loop.wake)
            played += loop.run([player.play(task, loop.ask) for task in part], sampler, on_played)
        self.faults.record([each.fault for each in played])
        filler = min(form.end_ids, default=0)
        return collect(played, batch.prompt_ids, sampling.num_generations, filler)

    def _at_once(self, assignments: list[Assignment]) -> list[list[Assignment]]:
        """Those that are played together: in waves a rollout would wait for others, and these for its environment, for ever."""
        limit = self.make_episode.at_once if waits_for_all(self.generator) else None
        size = len(assignments) if limit is None else limit
        parts = [assignments[first : first + size] for first in range(0, len(assignments), size)]
        return [[replace(task, number=n) for n, task in enumerate(part)] for part in parts]

    def _say_once(self, form: ChatForm) -> None:
        if not self._is_said:
            self._is_said = True
            rank_zero_info(template_note(form, self.has_tools, self.turns.history))

    def _assignments(self, batch: PromptBatch, num_generations: int, seeds: list[int]) -> list[Assignment]:
        """One for each rollout, prompt-major.

        Raises:
            RefusedRowError: If the prompts are text, or rows bring tools of their own.
        """
        tasks: list[Assignment] = []
        for b, prompt in enumerate(batch.prompts):
            name, columns = batch.row_name(b), {key: values[b] for key, values in batch.columns.items()}
            if isinstance(prompt, str):
                raise RefusedRowError(text_prompts(f"{name} is"))
            if columns.get(TOOLS):
                raise RefusedRowError(
                    f"The dataset's column {TOOLS!r} names tools for the chat template, and the policy can call those of "
                    "model.tools and model.environment only. Leave one of the two out."
                )
            own = row_template_kwargs({TEMPLATE_KWARGS: columns.get(TEMPLATE_KWARGS)}, {})
            for g in range(num_generations):
                row: dict[str, Any] = {"prompt": prompt, **columns}
                tasks.append(Assignment(len(tasks), name, prompt, row, derive_seed(seeds[b], g), own))
        return tasks

    def close(self, step: int) -> None:
        """Ends environments and their loop too."""
        super().close(step)
        self._loop.start(self.make_episode.close()).result(timeout=CLOSE_SECONDS)
        self._loop.close()
