"""The decode loop: prefill each prompt once, then one token for every unfinished completion at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from grpo_lightning.generation.base import SamplingSettings
from grpo_lightning.generation.stopping import StopRule
from grpo_lightning.generation.transformers.decoded_routes import DecodedRoutes
from grpo_lightning.generation.transformers.image_prefill import padding_token, prefill_arguments
from grpo_lightning.generation.transformers.kv_cache import keep_rows, ragged_cache, repeat_rows
from grpo_lightning.generation.transformers.sampling import TokenSampler
from grpo_lightning.numerics.output_head import base_model
from grpo_lightning.numerics.routers import RouteRecorder
from grpo_lightning.types import PromptImages

CHECK_EVERY = {"cpu": 1}
"""Tokens between looks at what has been sampled, by device type; looking stalls an accelerator, hence 8 elsewhere."""


OnRowCompleted = Callable[[int, list[int]], bool | None]
"""Called with the row and the token ids of each completion as it ends; True leaves all others as they are."""


class Transcript:
    """What has been sampled for n completions, on the policy's device, and as lists once it has been looked at.

    Args:
        limits: n numbers of tokens that each completion may have; C is the largest.
        device: Of the policy.
        stop_rule: When a completion ends.
        on_completed: As for ``decode``.
    """

    def __init__(
        self,
        limits: Sequence[int],
        device: torch.device,
        stop_rule: StopRule,
        on_completed: OnRowCompleted,
    ) -> None:
        size, limit = len(limits), max(limits)
        self.tokens = torch.zeros(size, limit, dtype=torch.int64, device=device)
        """(n, C); arbitrary beyond the end of a completion, like the logprobs."""
        self.logprobs = torch.zeros(size, limit, dtype=torch.float32, device=device)
        """(n, C) nats."""
        self.completion_ids: list[list[int]] = [[] for _ in range(size)]
        self.truncated = [False] * size
        self.done = [False] * size
        """False of completions that others' end has cut."""
        self.is_enough = False
        """Whether the completions that go on are to be left as they are."""
        self.routes: DecodedRoutes | None = None
        """Where a recorder listened."""
        self._limits = limits
        self._seen = 0
        self._stop_rule = stop_rule
        self._on_completed = on_completed

    def end_completions(self, rows: Tensor, length: int) -> list[int]:
        """Looks at the tokens sampled for ``rows`` since the last look, up to ``length``, and ends what has ended.

        Returns:
            Places in ``rows`` of the completions that go on, ascending.
        """
        fresh = self.tokens[rows, self._seen : length].tolist()
        self._seen = length
        going_on = []
        for place, (row, tokens) in enumerate(zip(rows.tolist(), fresh, strict=True)):
            completion = self.completion_ids[row]
            limit = self._limits[row]
            ended = self._extend(completion, tokens[: limit - len(completion)])
            if not ended and length < limit:
                going_on.append(place)
                continue
            self.truncated[row], self.done[row] = not ended, True
            self.is_enough |= self._on_completed(row, completion) is True
        return going_on

    def _extend(self, completion: list[int], tokens: Sequence[int]) -> bool:
        """Appends tokens up to the one that ends the completion, and says whether there was one."""
        for token in tokens:
            completion.append(token)
            if self._stop_rule.ends(completion):
                return True
        return False


class Slots:
    """The completions being decoded, one slot each: cache, mask and positions. Slot s holds completion ``rows[s]``.

    Prompts are padded on the left with their own first token: attention does not see it there, and a repetition
    penalty, which does, counts it anyway.

    Args:
        policy: Any causal language model of transformers.
        prompt_ids: b lists of token ids; each is computed once, then repeated.
        num_generations: Completions of each prompt: G of all of them, or one number per prompt.
        images: b of them, where prompts may show some.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        prompt_ids: Sequence[Sequence[int]],
        num_generations: int | Sequence[int],
        images: Sequence[PromptImages] = (),
    ) -> None:
        self.policy = policy
        self.cache = ragged_cache(policy.config)
        device = policy.device
        self.width = max(map(len, prompt_ids))
        fillers = [padding_token(*each) for each in zip(prompt_ids, images, strict=True)] if images else None
        fillers = fillers or [ids[0] for ids in prompt_ids]
        padded = [[fill] * (self.width - len(ids)) + list(ids) for fill, ids in zip(fillers, prompt_ids, strict=True)]
        lengths = torch.tensor([len(ids) for ids in prompt_ids], device=device)
        self.prompts = torch.tensor(padded, device=device)  # (b, width)
        self.positions = (torch.arange(self.width, device=device) - (self.width - lengths).unsqueeze(-1)).clamp_(min=0)
        columns = torch.arange(self.width, device=device)
        self.mask: Tensor | None = columns >= (self.width - lengths).unsqueeze(-1)  # (b, width)
        counts = [num_generations] * len(prompt_ids) if isinstance(num_generations, int) else num_generations
        self.padding = [self.width - len(ids) for ids, n in zip(prompt_ids, counts, strict=True) for _ in range(n)]
        self._drop_mask_if_unpadded()
        self.shift: Tensor | None = None
        """(n,): by how much a slot's positions differ from the numbers of its tokens, where images make them."""
        further: dict[str, Any] = {}
        if images:
            further, self.shift = prefill_arguments(base_model(policy), prompt_ids, images, device)
        self._forward(self.prompts, **further)
        self._repeat(torch.tensor(counts, device=device))
        self.rows = torch.arange(len(self.padding), device=device)

    def feed(self, tokens: Tensor) -> None:
        """Runs the policy on the next token of every slot, ``(n,)``, and leaves its ``logits``."""
        self.positions = self.positions[:, -1:] + 1
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=-1)
        self._forward(tokens.unsqueeze(-1))

    def history(self, tokens: Tensor) -> Tensor:
        """``(slots, width + t)``: the padded prompt of every slot and what has followed it, of ``tokens``, ``(n, t)``."""
        return torch.cat([self.prompts[self.rows], tokens[self.rows]], dim=-1)

    def keep(self, alive: Sequence[int]) -> None:
        """Keeps these slots, given in ascending order, and closes the gaps with slots from the end."""
        if len(alive) == len(self.rows):
            return
        kept = set(alive)
        holes = [slot for slot in range(len(alive)) if slot not in kept]
        order = list(range(len(alive)))
        for hole, slot in zip(holes, alive[len(alive) - len(holes) :], strict=True):
            order[hole] = slot
        self.padding = [self.padding[slot] for slot in order]
        index = torch.tensor(order, device=self.rows.device)
        keep_rows(self.cache, index, torch.tensor(holes, dtype=torch.int64, device=self.rows.device))
        self.rows, self.positions = self.rows[index], self.positions[index]
        if self.shift is not None:
            self.shift = self.shift[index]
        if self.mask is not None:
            self.mask = self.mask[index]
            self._drop_mask_if_unpadded()

    def _forward(self, input_ids: Tensor, **images: Any) -> None:
        arguments: dict[str, Any] = {"position_ids": self.positions, **images}
        if self.shift is not None and not images:
            arguments["position_ids"] = (self.positions + self.shift.unsqueeze(-1)).expand(3, -1, -1)
        output = self.policy(
            input_ids=input_ids,
            attention_mask=self.mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **arguments,
        )
        self.logits = output.logits[:, -1]  # (n, V)

    def _repeat(self, counts: Tensor) -> None:
        repeat_rows(self.cache, counts)
        self.logits = self.logits.repeat_interleave(counts, 0)
        self.positions = self.positions.repeat_interleave(counts, 0)
        self.prompts = self.prompts.repeat_interleave(counts, 0)
        if self.shift is not None:
            self.shift = self.shift.repeat_interleave(counts, 0)
        if self.mask is not None:
            self.mask = self.mask.repeat_interleave(counts, 0)

    def _drop_mask_if_unpadded(self) -> None:
        """Without a mask the model builds none and attention takes its fastest path."""
        if not any(self.padding):
            self.mask = None


def decode(
    policy: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    sampling: SamplingSettings,
    uniforms: Tensor,
    stop_rule: StopRule,
    on_completed: OnRowCompleted,
    counts: Sequence[int] | None = None,
    limits: Sequence[int] | None = None,
    images: Sequence[PromptImages] = (),
    recorder: RouteRecorder | None = None,
) -> Transcript:
    """N completions, decoded together; a completion that ends leaves the batch.

    Args:
        policy: In evaluation mode; call without gradient.
        prompt_ids: b lists of token ids.
        sampling: How to draw.
        uniforms: ``(n, C)`` float64 in [0, 1), one per token, prompt-major.
        stop_rule: When a completion ends.
        on_completed: Called with the row in ``uniforms`` and the token ids of each completion as it ends; True leaves
            the others as they are.
        counts: Completions of each prompt; G of all by default.
        limits: Tokens of each completion; max_completion_length of all by default.
        images: b of them, where prompts may show some.
        recorder: Of the policy's routers, where they are to be known.
    """
    slots = Slots(policy, prompt_ids, sampling.num_generations if counts is None else counts, images)
    sampler = TokenSampler(sampling)
    device = slots.rows.device
    uniforms = uniforms.to(device)
    limits = [sampling.max_completion_length] * len(uniforms) if limits is None else limits
    transcript = Transcript(limits, device, stop_rule, on_completed)
    if recorder is not None:
        transcript.routes = DecodedRoutes(recorder, prompt_ids, len(uniforms), max(limits))
    check_every = CHECK_EVERY.get(device.type, 8)
    for step in range(max(limits)):
        history = slots.history(transcript.tokens[:, :step]) if sampler.needs_history else None
        tokens, logprobs = sampler(slots.logits, uniforms[slots.rows, step], history)
        transcript.tokens[slots.rows, step] = tokens
        transcript.logprobs[slots.rows, step] = logprobs
        if (step + 1) % check_every == 0 or step + 1 == max(limits):
            going_on = transcript.end_completions(slots.rows, step + 1)
            if not going_on or transcript.is_enough:
                break
            slots.keep(going_on)
        slots.feed(transcript.tokens[slots.rows, step])
        if transcript.routes is not None:
            transcript.routes.note(slots.rows, step)
    return transcript
