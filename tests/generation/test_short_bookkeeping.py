"""The shortened bookkeeping of vLLM: the same completions as with vLLM's own, for a fraction of its calls."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, replace
from types import SimpleNamespace as Named
from typing import Any

import numpy as np
import pytest
from transformers import GenerationConfig, PreTrainedModel
from vllm_cases import END_IDS, LONG_PROMPT, PROMPTS, SEEDS, SETTINGS, ending_model, needs_vllm, rows, running

from grpo_lightning.generation import SamplingSettings, VLLMColocate
from grpo_lightning.generation.vllm.patches.short_bookkeeping import shorten_bookkeeping
from grpo_lightning.generation.vllm.patches.withheld import HandsOver, ToProcessor, ToServer

pytestmark = needs_vllm
STOP = SamplingSettings(num_generations=3, max_completion_length=12, temperature=0.7, stop=("a", "e"))
DIGITS = SamplingSettings(num_generations=3, max_completion_length=12, structured_outputs={"regex": "[0-9]{2,9}"})
GROWING = [LONG_PROMPT[n : 100 + n] for n in range(4)]
LONG = SamplingSettings(num_generations=4, max_completion_length=156)  # up to the engine's 256 positions


def model() -> PreTrainedModel:
    """Two of 320 tokens end a completion: some end early, some only with the limit."""
    made = ending_model()
    made.generation_config = GenerationConfig(eos_token_id=END_IDS[:2])
    return made


def engine_core(generator: VLLMColocate) -> Any:
    return generator._engine.llm.llm_engine.engine_core.engine_core


def handed_over(scheduler: Any) -> list[int]:
    """From here on, the number of tokens in each output that leaves the scheduler."""
    sizes: list[int] = []
    update = scheduler.update_from_output

    def note(*args: Any) -> Any:
        results = update(*args)
        sizes.extend(len(output.new_token_ids) for result in results.values() for output in result.outputs)
        return results

    scheduler.update_from_output = note
    return sizes


def interrupted(generator: VLLMColocate) -> list[Any]:
    """What a run gives after one that a callback has ended."""

    def fail(n: int, ids: list[int]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generator.generate(PROMPTS, SETTINGS, SEEDS, fail)
    return rows(generator.generate(PROMPTS, SETTINGS, SEEDS))


def everything(generator: VLLMColocate) -> list[Any]:
    batches = [(PROMPTS, SETTINGS), (PROMPTS, STOP), (GROWING, LONG)]
    return [*(rows(generator.generate(*batch, SEEDS)) for batch in batches), interrupted(generator)]


def assert_same_up_to_rounding(found: list[Any], expected: list[Any]) -> None:
    """The same tokens and ends; where requests did not run beside the same others, logprobs are rounded otherwise."""
    assert [(ids, truncated) for ids, _, truncated in found] == [(ids, truncated) for ids, _, truncated in expected]
    for (_, logprobs, _), (_, others, _) in zip(found, expected, strict=True):
        assert logprobs == pytest.approx(others, abs=1e-4)


@pytest.fixture(scope="module")
def own() -> dict[str, Any]:
    """With vLLM's own bookkeeping, and ample memory."""
    with running(model(), shorten_bookkeeping=False) as generator:
        assert "update_from_output" not in vars(engine_core(generator).scheduler)
        found = everything(generator)
        return {"all": found, "long": found[2], "digits": rows(generator.generate(PROMPTS, DIGITS, SEEDS))}


def test_requests_that_had_to_wait_for_memory_in_mid_completion_lose_no_token(own):
    """16 completions start with a block of 128 tokens each and soon need a second one, of which there are few."""
    with running(model(), kv_cache_memory_gb=20 * 2**-14) as generator:
        scheduler, preempted = engine_core(generator).scheduler, []
        preempt = scheduler._preempt_request
        scheduler._preempt_request = lambda r, *args, **options: preempted.append(r) or preempt(r, *args, **options)
        found = rows(generator.generate(GROWING, LONG, SEEDS))
    assert preempted
    assert_same_up_to_rounding(found, own["long"])


@pytest.fixture(scope="module")
def generator(own) -> Iterator[VLLMColocate]:
    """With the shortened bookkeeping, and as much memory; started when the other engine has ended."""
    with running(model()) as engine:
        yield engine


@pytest.fixture
def scheduler(generator) -> Iterator[Any]:
    """Of that engine, to be watched or changed by one test."""
    found = engine_core(generator).scheduler
    manager = found.kv_cache_manager
    before = found.update_from_output, found.schedule, manager.allocate_slots, found.num_lookahead_tokens
    yield found
    found.update_from_output, found.schedule, manager.allocate_slots, found.num_lookahead_tokens = before


def test_completions_are_those_of_vllms_own_bookkeeping(generator, own):
    assert everything(generator) == own["all"]
    # When a grammar is ready, and so which requests run together, is a matter of time.
    assert_same_up_to_rounding(rows(generator.generate(PROMPTS, DIGITS, SEEDS)), own["digits"])
    lengths = {len(ids) for ids, _, _ in own["long"]}
    assert {truncated for ids, _, truncated in own["long"]} == {True, False} and len(lengths) > 3


def test_a_completion_leaves_the_engine_when_it_ends_and_not_token_by_token(generator, scheduler):
    sizes = handed_over(scheduler)
    found = rows(generator.generate(PROMPTS, SETTINGS, SEEDS))
    assert sum(sizes) == sum(len(ids) for ids, _, _ in found)
    assert len(sizes) <= 2 * len(found)  # the first token comes with the prompt, the others together


def test_an_engine_that_does_more_at_every_token_is_left_alone(generator, scheduler):
    before, hand_over = scheduler.update_from_output, ToServer()
    scheduler.num_lookahead_tokens = 2
    assert not shorten_bookkeeping(scheduler, hand_over) and scheduler.update_from_output == before
    scheduler.num_lookahead_tokens, scheduler.perf_metrics = 0, Named()  # which count what every request computes
    assert not shorten_bookkeeping(scheduler, hand_over) and scheduler.update_from_output == before
    scheduler.perf_metrics = None
    assert shorten_bookkeeping(scheduler, hand_over) and scheduler.update_from_output != before


def test_the_first_token_is_handed_over_when_it_is_there_although_nothing_else_was_computed(generator, scheduler):
    """A prompt of one token looks like any other step of a completion."""
    sizes = handed_over(scheduler)
    generator.generate([[50]], SamplingSettings(max_completion_length=12, num_generations=1, temperature=0), [1])
    assert sizes[0] == 1 and len(sizes) == 2


class Ahead:
    """An AsyncScheduler of a real engine's configuration, whose model draws tokens from a seed for each request.

    Args:
        core: vLLM's, for the configuration.
        num_blocks: Of its cache, one of which vLLM keeps.
        reader: With the shortened bookkeeping, for who reads completions in this process, or of a server; else None.
    """

    def __init__(self, core: Any, num_blocks: int, reader: str | None = None) -> None:
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler

        config = core.scheduler.kv_cache_config
        self.scheduler = AsyncScheduler(
            vllm_config=core.vllm_config,
            kv_cache_config=replace(config, num_blocks=num_blocks),
            structured_output_manager=core.structured_output_manager,
            block_size=core.scheduler.block_size,
            hash_block_size=core.scheduler.block_size,
        )
        self.collected: dict[str, Any] = {}
        """By request: the collector of logprobs of vLLM's output processor."""
        self.own_schedules = 0
        """Steps that vLLM scheduled in its own way, with requests of its own."""
        schedule = self.scheduler.schedule

        def counted(*args: Any) -> Any:
            self.own_schedules += bool(self.scheduler.running or self.scheduler.waiting)
            return schedule(*args)

        self.scheduler.schedule = counted
        if reader is not None:
            way: HandsOver = ToServer() if reader == "server" else ToProcessor(Named(request_states=self.collected))
            assert shorten_bookkeeping(self.scheduler, way)
        self.hasher = core.request_block_hasher
        self.scheduled: list[dict[str, Any]] = []
        """What the scheduler said at each step."""
        self.states: list[Any] = []
        self.outputs: dict[str, list[Any]] = {}
        self.preemptions = 0
        self.columns = 0
        """Logprobs of a token that are told besides its own."""

    def add(self, limit: int) -> None:
        """A request for a completion of up to so many tokens."""
        from vllm import SamplingParams
        from vllm.logprobs import FlatLogprobs
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.logprobs import LogprobsProcessor
        from vllm.v1.request import Request

        n = len(self.outputs)
        sampling = SamplingParams(max_tokens=limit, logprobs=0, detokenize=False, stop_token_ids=[7])
        sampling.flat_logprobs, sampling.output_kind = True, RequestOutputKind.FINAL_ONLY
        request = Request(f"r{n}", LONG_PROMPT[: 110 + n % 20], sampling, None, block_hasher=self.hasher)
        self.outputs[request.request_id] = []
        logprobs = {"logprobs": FlatLogprobs(), "cumulative_logprob": 0.0, "num_logprobs": 0}
        processor = LogprobsProcessor(None, prompt_logprobs=None, num_prompt_logprobs=None, **logprobs)
        self.collected[request.request_id] = Named(logprobs_processor=processor)
        self.scheduler.add_request(request)

    def run(self, limits: list[int], before_step: Callable[[], None] = lambda: None) -> None:
        """Completions of up to so many tokens, two steps of the model always under way."""
        for limit in limits:
            self.add(limit)
        under_way: deque[Any] = deque()
        drawn: dict[str, random.Random] = defaultdict(lambda: random.Random(len(drawn)))
        while self.scheduler.has_requests() or under_way:
            before_step()
            scheduled = self.scheduler.schedule()
            self.scheduled.append(deepcopy(vars(scheduled)))
            self.preemptions += len(scheduled.preempted_req_ids or ())
            if scheduled.num_scheduled_tokens:
                under_way.append((scheduled, self._sample(scheduled, drawn)))
            if under_way and (len(under_way) == 2 or not scheduled.num_scheduled_tokens):
                self._take(*under_way.popleft())

    def _sample(self, scheduled: Any, drawn: dict[str, random.Random]) -> Any:
        from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput

        names = list(scheduled.num_scheduled_tokens)
        tokens, logprobs = [], []
        for name in names:
            request = self.scheduler.requests[name]
            is_whole = not request.is_prefill_chunk
            tokens.append([drawn[name].randrange(60)] if is_whole else [])
            logprobs.append(-drawn[name].random())
        column = np.array([row[0] if row else -1 for row in tokens], dtype=np.int32)
        others = range(1 + self.columns)  # with those of the likeliest tokens, for some other request of the step
        wide = [np.stack([n + of_sampled for n in others], 1) for of_sampled in (column, np.float32(logprobs))]
        scores = LogprobsLists(*wide, column % 5)
        return ModelRunnerOutput(names, {name: n for n, name in enumerate(names)}, tokens, scores)

    def _take(self, scheduled: Any, output: Any) -> None:
        for result in self.scheduler.update_from_output(scheduled, output).values():
            for completion in result.outputs:
                self.outputs[completion.request_id].append(completion)
                self.collected[completion.request_id].logprobs_processor.update_from_output(completion)
        manager = self.scheduler.kv_cache_manager
        self.states.append(
            {
                name: (
                    request.status.name,
                    list(request.output_token_ids),
                    request.num_computed_tokens,
                    request.num_output_placeholders,
                    getattr(request, "num_in_flight_tokens", None),
                    manager.get_block_ids(name),
                    len(request.block_hashes),
                    manager.coordinator.single_type_managers[0].num_cached_block.get(name),
                )
                for name, request in self.scheduler.requests.items()
            }
            | {"free": manager.block_pool.get_num_free_blocks()}
        )

    def completions(self) -> dict[str, Any]:
        """Tokens, logprobs and ranks, and the end of each."""
        return {
            name: (
                [token for part in parts for token in part.new_token_ids],
                asdict(self.collected[name].logprobs_processor.logprobs),
                [(part.finish_reason, part.stop_reason) for part in parts if part.finish_reason is not None],
            )
            for name, parts in self.outputs.items()
        }


READERS = pytest.mark.parametrize("reader", ["process", "server"])


@READERS
@pytest.mark.parametrize("num_blocks", [200, 9])
def test_scheduled_ahead_every_step_leaves_the_state_that_vllm_would_leave(generator, num_blocks, reader):
    core = engine_core(generator)
    limits = [1, 2, 130, 100, 90, 120, 17]
    own, short = Ahead(core, num_blocks), Ahead(core, num_blocks, reader)
    own.run(limits)
    short.run(limits)
    assert short.scheduled == own.scheduled
    if num_blocks == 200:  # with few, a step may always have to preempt
        assert short.own_schedules < len(short.scheduled) / 3
    assert short.states == own.states
    assert short.completions() == own.completions()
    assert (own.preemptions > 0) == (num_blocks == 9)
    assert sum(map(len, short.outputs.values())) < sum(map(len, own.outputs.values())) / 2


@READERS
def test_a_step_in_which_somebody_else_wants_more_logprobs_brings_the_same_completions(generator, reader):
    core, found = engine_core(generator), []
    for columns in (0, 5):
        ahead = Ahead(core, 200, reader)
        ahead.columns = columns
        ahead.run([1, 2, 130, 17])
        found.append(ahead.completions())
    assert found[1] == found[0]


def disturbed(core: Any, seed: int, num_blocks: int, reader: str | None = None) -> Ahead:
    """A run in which requests come, are given up, and have their limits lowered at random."""
    from vllm.v1.request import RequestStatus

    ahead, drawn = Ahead(core, num_blocks, reader), random.Random(seed)
    bookkeeping = None if reader is None else ahead.scheduler.update_from_output.__self__

    def disturb() -> None:
        event, under_way = drawn.random(), sorted(ahead.scheduler.requests)
        if event < 0.05 and len(ahead.outputs) < 20:
            ahead.add(drawn.randrange(1, 60))
        elif event < 0.07 and under_way:
            ahead.scheduler.finish_requests(drawn.choice(under_way), RequestStatus.FINISHED_ABORTED)
        elif event < 0.08:  # as ColocatedEngine.cut_all
            for request in ahead.scheduler.requests.values():
                under_way_of_it = max(1, request.num_output_placeholders)
                request.max_tokens = min(request.max_tokens, request.num_output_tokens + under_way_of_it)
            if bookkeeping is not None:
                bookkeeping.read_limits()

    ahead.run([drawn.randrange(1, 60) for _ in range(6)], disturb)
    return ahead


@READERS
@pytest.mark.parametrize(("seed", "num_blocks"), [(0, 200), (1, 200), (2, 12), (3, 9), (4, 9)])
def test_requests_that_come_and_go_are_scheduled_as_vllm_would_schedule_them(generator, seed, num_blocks, reader):
    core = engine_core(generator)
    own, short = disturbed(core, seed, num_blocks), disturbed(core, seed, num_blocks, reader)
    assert short.scheduled == own.scheduled
    assert short.states == own.states
    ended = [name for name, parts in own.outputs.items() if parts and parts[-1].finish_reason is not None]
    assert len(ended) > 3
    assert {name: short.completions()[name] for name in ended} == {name: own.completions()[name] for name in ended}


def test_a_request_of_which_somebody_waits_for_each_token_is_left_to_vllm():
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    final, streamed = RequestOutputKind.FINAL_ONLY, RequestOutputKind.DELTA
    assert ToServer().can_wait(SamplingParams(logprobs=0, output_kind=final))
    assert not ToServer().can_wait(SamplingParams(logprobs=0, output_kind=streamed))
    assert not ToServer().can_wait(SamplingParams(stop=["a"], output_kind=final))
