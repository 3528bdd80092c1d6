"""Training passes of the worst shape before the first step: how much memory they take, or that they do not fit.

A run that has rehearsed goes on as one that has not: weights, random states, modes and counters are as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from lightning.pytorch.utilities import rank_zero_warn

from grpo_lightning.algorithm.averaging import StepTotals
from grpo_lightning.algorithm.experience import MicroBatch
from grpo_lightning.distributed.gather import gather_objects
from grpo_lightning.generation.random_state import preserved_random_state
from grpo_lightning.memory.advice import ways_to_save
from grpo_lightning.memory.budget import (
    GIB,
    DeviceState,
    MemoryLine,
    MemoryPlan,
    PassMemory,
    choose_budget,
    does_not_fit,
    largest_budget,
    least_room,
    smaller_budget,
)
from grpo_lightning.memory.gauge import MemoryGauge, is_out_of_memory, optimizer_bytes
from grpo_lightning.memory.workload import Workload
from grpo_lightning.memory.worst_case import filling_rollouts, showing, worst_shapes
from grpo_lightning.numerics.dtypes import with_float32_defaults
from grpo_lightning.numerics.output_head import base_model
from grpo_lightning.scoring.planning import count_tokens
from grpo_lightning.types import Rollouts

PROBE_TOKENS = 4096
"""Up to which passes double in size to show how memory grows: beyond one chunk of the head's logits, and small."""
UNKNOWN_PROMPT = 1024
"""Tokens of the longest prompt, where the data does not tell."""


class PassTooLargeError(MemoryError):
    """A micro-batch does not fit, as all ranks have found."""


class Rehearsal:
    """Training passes that change nothing, on all ranks together.

    Args:
        work: The training.
        gauge: Of this rank's device.
    """

    def __init__(self, work: Workload, gauge: MemoryGauge) -> None:
        self.work = work
        self.gauge = gauge
        self.config = base_model(work.policy.model).config.get_text_config()
        self.prompt_length, self.completion_length = self._longest()
        self.longest = self.prompt_length + self.completion_length
        prompts = max(gather_objects(work.prompts_in_a_step)) * work.replica_size
        self.whole_step = prompts * work.group_size * self.longest
        """Tokens that no micro-batch exceeds, whatever the budget."""
        size = sum(parameter.numel() for parameter in work.policy.parameters())
        self.largest = largest_budget(size)
        """What auto does not exceed."""
        self._settle_layout()
        kept, self.step_bytes = optimizer_bytes(work.optimizer, work.optimizer_factory, gauge)
        self.state = DeviceState(gauge.total, gauge.free(), kept)

    def _longest(self) -> tuple[int, int]:
        """Tokens of the longest prompt and of the longest completion that the model's positions leave room for."""
        prompt = max(gather_objects(self.work.longest_prompt or UNKNOWN_PROMPT))
        completion = self.work.max_completion_length
        positions = getattr(self.config, "max_position_embeddings", None) or prompt + completion
        prompt = min(prompt, positions - 1)
        return prompt, min(completion, positions - prompt)

    @torch.no_grad()
    def _settle_layout(self) -> None:
        with unchanged(self.work), self.work.precision():
            with_float32_defaults(self.work.passes.scorer.idle)()

    def needed(self, tokens: int, with_step: bool = False) -> PassMemory | None:
        """What a micro-batch needs at worst, on the rank that needs most; None if one ran out of memory.

        Args:
            tokens: Of the micro-batch.
            with_step: Also try what the optimizer takes for a moment while it steps.

        Raises:
            MemoryError: Where ranks wait for each other inside a pass: the others end when this one does.
        """
        needed: PassMemory | None = None
        try:
            needed = self._measure(tokens, with_step)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if self.work.is_joint:
                changes = ways_to_save(self.work, tokens > self.longest, None)
                raise MemoryError(does_not_fit(tokens, None, self.state, changes)) from error
        self.gauge.free()  # gives back what the passes have left
        ranks = gather_objects(needed)
        known = [rank for rank in ranks if rank is not None]
        return max(known, key=lambda rank: rank.bytes) if len(known) == len(ranks) else None

    def line(self, largest: int) -> MemoryLine:
        """How memory grows with tokens: from passes that double in size up to ``largest`` or ``PROBE_TOKENS``.

        Raises:
            MemoryError: If not even the longest completion fits.
        """
        shortest = 2 if self.work.shown is None else len(self.work.shown[0]) + 1  # one that shows its images
        half = min(max(self.longest // 2, shortest), self.longest)
        self.needed(half)  # libraries take memory of their own at first
        small, large = self.needed(half), self.needed(self.longest)
        if small is None or large is None:
            raise self.refusal(self.longest, None)
        tokens = 2 * self.longest
        while tokens <= min(largest, PROBE_TOKENS) and self.has_room_for(2 * large.bytes):
            larger = self.needed(tokens)
            if larger is None:
                break
            small, large, tokens = large, larger, 2 * tokens
        return MemoryLine.through(small, large)

    def has_room_for(self, size: int) -> bool:
        """Whether every rank has so many bytes for gradients and activations."""
        return all(gather_objects(size <= self.state.for_passes))

    def may_fit(self, line: MemoryLine, tokens: int) -> bool:
        """False where some rank expects to run out of memory in a pass inside of which the others would wait for it."""
        return not self.work.is_joint or self.has_room_for(line.at(tokens))

    def check_room(self, awake: int) -> None:
        """Refuses a device that has no room for the optimizer's states, with the engine awake (``awake`` bytes free).

        Raises:
            MemoryError: On all ranks, if one has none.
        """
        state = least_room(gather_objects(replace(self.state, free=min(awake, self.state.free))))
        if state.for_passes <= 0:
            raise MemoryError(
                f"The optimizer will keep {state.optimizer / GIB:.2f} GiB, and {state.free / GIB:.2f} of "
                f"{state.total / GIB:.2f} GiB are free beside weights, reference and generator. "
                f"Any of these helps: {'; '.join(ways_to_save(self.work, False, None))}."
            )

    def refusal(self, tokens: int, line: MemoryLine | None) -> PassTooLargeError:
        """The error for a micro-batch that does not fit, the same on all ranks."""
        state = least_room(gather_objects(self.state))
        fitting = None if line is None else choose_budget(line, state, self.longest, self.largest)
        can_be_split = tokens > self.longest and (line is None or line.at(fitting or 0) <= state.for_passes)
        changes = ways_to_save(self.work, can_be_split, fitting)
        return PassTooLargeError(does_not_fit(tokens, None if line is None else line.at(tokens), state, changes))

    def _measure(self, tokens: int, with_step: bool) -> PassMemory:
        layout, results = self.work.passes.scorer.layout, list[PassMemory]()
        held = self.gauge.hold(self.state.optimizer)
        for rollouts in self._worst(tokens):
            rows = torch.arange(rollouts.num_completions)
            sizes = (rollouts.prompt_lengths, rollouts.completion_lengths, rollouts.group)
            count = count_tokens(*sizes, rows, layout)
            with unchanged(self.work), self.gauge.measuring() as peak:
                for weight in self.work.policy.parameters():
                    if weight.requires_grad:  # of the micro-batches before
                        weight.grad = torch.zeros_like(weight)
                self._train_on(rollouts, count)
                if with_step:
                    self.gauge.hold(self.step_bytes)
                results.append(PassMemory(count, peak()))
        del held
        return max(results, key=lambda result: result.bytes)

    def _worst(self, tokens: int) -> Iterator[Rollouts]:
        """Rollouts that fill a micro-batch, one shape after the other; with images wherever prompts show some."""
        layout, shown = self.work.passes.scorer.layout, self.work.shown
        prompts = {self.prompt_length} if shown is None else {self.prompt_length, len(shown[0])}
        for prompt in sorted(prompts):
            for length in worst_shapes(layout, self.completion_length):
                sizes = (tokens, prompt, length, self.work.group_size)
                rollouts = filling_rollouts(*sizes, self.config.vocab_size, layout)
                yield rollouts if shown is None else showing(rollouts, *shown)

    def _train_on(self, rollouts: Rollouts, tokens: int) -> None:
        """A GRPO step from its rollouts on, with one micro-batch and no optimizer step."""
        rows, trained = torch.arange(rollouts.num_completions), rollouts.completion_ids.numel()
        micro_batch = MicroBatch(rows, StepTotals(len(rows), trained, trained), is_last=False)
        self.work.passes.max_tokens = tokens
        with self.work.precision():
            with_float32_defaults(self.work.run_pass)(rollouts, micro_batch)


@contextmanager
def unchanged(work: Workload) -> Iterator[None]:
    """Whatever passes change, an error in them included, is as before after the block."""
    budget, model = work.passes.max_tokens, work.policy.model
    was_training = model.training
    with preserved_random_state(work.device), work.passes.scorer.without_graphs():
        try:
            yield
        finally:
            work.policy.zero_grad(set_to_none=True)
            model.train(was_training)
            work.passes.max_tokens = budget


def rehearse(work: Workload, gauge: MemoryGauge) -> MemoryPlan:
    """Gives passes a number of tokens that fits, or makes sure that theirs does; the same on all ranks.

    Args:
        work: The training that is about to start.
        gauge: Of this rank's device.

    Raises:
        MemoryError: If nothing fits, or not the number of the config; it says what to change.
    """
    passes = work.passes
    asked = passes.max_tokens if passes.is_fixed else passes.saved_budget
    try:
        plan = _plan(work, gauge, asked)
    except PassTooLargeError:
        if not passes.forgo_logits():
            raise
        plan = _plan(work, gauge, asked)
    passes.max_tokens = plan.budget
    if asked not in (None, plan.budget):
        rank_zero_warn(
            f"The checkpoint's micro-batches of {asked} tokens do not fit into memory here: this run has {plan.budget}, and its "
            "numbers will differ from those of the first one in rounding."
        )
    return plan


def _plan(work: Workload, gauge: MemoryGauge, budget: int | None) -> MemoryPlan:
    """The budget, where it fits or there is none another one, and what it takes.

    Raises:
        MemoryError: If nothing fits, or not the fixed budget; it says what to change.
    """
    with torch.no_grad():
        work.wake()
    awake = gauge.free()
    if work.generator is not None:
        work.generator.rest()  # as while the policy is trained
    rehearsal = Rehearsal(work, gauge)
    rehearsal.check_room(awake)
    line = rehearsal.line(max(rehearsal.largest if budget is None else budget, rehearsal.longest))
    if budget is None:
        budget = min(gather_objects(choose_budget(line, rehearsal.state, rehearsal.longest, rehearsal.largest)))
    while True:
        tokens = min(max(budget, rehearsal.longest), rehearsal.whole_step)
        needed = rehearsal.needed(tokens, with_step=True) if rehearsal.may_fit(line, tokens) else None
        if needed is not None:
            return MemoryPlan(budget, needed, least_room(gather_objects(rehearsal.state)))
        smaller = None if work.passes.is_fixed else smaller_budget(budget, rehearsal.longest)
        if smaller is None:
            raise rehearsal.refusal(tokens, line)
        budget = smaller
