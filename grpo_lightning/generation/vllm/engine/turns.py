"""Turns of many rollouts in one engine of this process: each joins the running batch when it is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack

from grpo_lightning.generation.base import SamplingSettings
from grpo_lightning.generation.turns import SampledTurn, TurnRequest, TurnSampler
from grpo_lightning.generation.vllm.engine.engine import ColocatedEngine
from grpo_lightning.generation.vllm.engine.sampling_parameters import further_parameters
from grpo_lightning.generation.vllm.requests.completions import Completions, sampled_turn
from grpo_lightning.generation.vllm.requests.prompts import single_request
from grpo_lightning.seeds import derive_seed


class EngineTurns(TurnSampler):
    """Adds requests between the steps of an engine.

    A turn is drawn with a seed of its own, so that what is sampled beside it matters only through rounding; an engine
    whose arithmetic does not depend on the batch (VLLM_BATCH_INVARIANT=1) repeats bit for bit.

    Args:
        engine: With the policy's weights, awake.
        sampling: How to draw.
        eos_ids: Tokens that end a turn.
        on_closed: Called at the end with the seconds and the tokens that were sampled.
    """

    def __init__(
        self,
        engine: ColocatedEngine,
        sampling: SamplingSettings,
        eos_ids: frozenset[int],
        on_closed: Callable[[float, int], None],
    ) -> None:
        self.engine, self.sampling, self.eos_ids, self.on_closed = engine, sampling, eos_ids, on_closed
        self._further = further_parameters(sampling)
        self._under_way: dict[str, tuple[int, Completions]] = {}
        self._mode = ExitStack()
        self._started, self._tokens = time.perf_counter(), 0
        self._is_open = False

    def add(self, request: TurnRequest) -> None:
        """See ``TurnSampler.add``.

        Raises:
            ValueError: If the engine has no room for it.
        """
        if not self._is_open:
            self._mode.enter_context(self.engine.sampling_mode(derive_seed("vllm", request.seed)))
            self._is_open = True
        one = single_request(request, self.sampling, self.eos_ids)
        limit = request.limit + len(request.prompt_ids)
        if limit > self.engine.max_model_length:
            raise ValueError(
                f"a turn of {request.limit} tokens behind {len(request.prompt_ids)} makes {limit}, but the vLLM engine holds "
                f"{self.engine.max_model_length} (model.generator.init_args.max_model_length). Raise that, or lower "
                "model.max_completion_length."
            )
        self._under_way[self.engine.add(one, self._further)] = request.rollout, Completions(1, 1)

    def ended(self, rollout: int) -> None:
        """Nothing: no rollout waits for another one."""

    @property
    def is_busy(self) -> bool:
        """Whether requests are under way."""
        return bool(self._under_way)

    def step(self) -> list[SampledTurn]:
        """One step of the engine."""
        turns = []
        for name, part, logprobs in self.engine.step():
            rollout, completions = self._under_way[name]
            completions.extend(0, part.token_ids, logprobs, part.finish_reason)
            if completions.done[0]:
                del self._under_way[name]
                turns.append(sampled_turn(rollout, completions))
                self._tokens += len(completions.token_ids[0])
        return turns

    def close(self) -> None:
        """Aborts what is under way."""
        if self._under_way:
            self.engine.abort(self._under_way)
            self._under_way.clear()
        self._mode.close()
        self.on_closed(time.perf_counter() - self._started, self._tokens)
