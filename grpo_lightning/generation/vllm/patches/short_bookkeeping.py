"""vLLM's bookkeeping of each token, shortened for completions of which only the end is read.

At every step vLLM's scheduler and its output processor do some twenty Python calls for each running request: they look for
room in the cache, for reasons to stop, and wrap the token and its logprob in objects on their way out; of a server they also
go to another process. With a small model that takes longer than the GPU needs. Rollouts need little of it: a token that does
not end its completion, and whose place in the cache is there, is written down here and that is all. Everything else, and every
request that is not as plain as that, goes through vLLM's own code as before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from grpo_lightning.generation.vllm.compat import request_counters
from grpo_lightning.generation.vllm.patches.plain_schedule import PlainSchedule
from grpo_lightning.generation.vllm.patches.withheld import HandsOver, Withheld

FURTHER_WORK = (
    "connector",
    "ec_connector",
    "aux_output_connector",
    "enable_return_routed_experts",
    "return_sampling_mask",
    "num_spec_tokens",
    "num_lookahead_tokens",
    "perf_metrics",
    "use_pp",
)
"""Attributes of vLLM's schedulers that say that they do more at every token."""


@dataclass
class _Plain:
    """A request whose tokens may be withheld until it ends."""

    stops: frozenset[int]
    """Tokens that may end it."""
    limit: int
    """Tokens of prompt and completion with which it ends at the latest."""
    withheld: Withheld


def shorten_bookkeeping(scheduler: Any, hand_over: HandsOver) -> ShortBookkeeping | None:
    """From here on, an engine writes down plain tokens only, and hands over a completion when it ends.

    The tokens, their logprobs and how they end are the same, bit for bit.

    Args:
        scheduler: vLLM's, before its first request.
        hand_over: To whoever reads completions.

    Returns:
        None if this version of vLLM is not known, or the engine does more at every token (speculation, hybrid caches,
        transfers, ...), and is left as it is.
    """
    counters = request_counters()
    groups = scheduler.kv_cache_config.kv_cache_groups
    is_usual = type(scheduler).__name__ in ("Scheduler", "AsyncScheduler") and len(groups) == 1
    does_more = any(getattr(scheduler, name, None) for name in FURTHER_WORK)
    if counters is None or not is_usual or does_more or "Mamba" in type(groups[0].kv_cache_spec).__name__:
        return None
    return ShortBookkeeping(scheduler, hand_over, groups[0].kv_cache_spec.block_size, *counters)


class ShortBookkeeping:
    """Stands before three methods of a scheduler, one of them by ``PlainSchedule``.

    Args:
        scheduler: vLLM's.
        hand_over: What was withheld, with the end of its completion.
        block_size: Tokens in a block of its cache of keys and values.
        dropped: The counter of a request's tokens that were computed in vain.
        in_flight: The counter of its tokens that are computed now, where there is one.
    """

    def __init__(
        self, scheduler: Any, hand_over: HandsOver, block_size: int, dropped: str, in_flight: str | None
    ) -> None:
        from vllm.v1.request import RequestStatus

        self.scheduler, self.manager, self.block_size = scheduler, scheduler.kv_cache_manager, block_size
        self.hand_over = hand_over
        self.requests: dict[str, _Plain | None] = {}
        """By id; None for those that go through vLLM's own code."""
        self._running, self._dropped, self._in_flight = RequestStatus.RUNNING, attrgetter(dropped), in_flight
        self._update, self._allocate = scheduler.update_from_output, self.manager.allocate_slots
        plain_schedule = PlainSchedule(scheduler, self.requests, block_size)
        scheduler.update_from_output, scheduler.schedule = self.update_from_output, plain_schedule.schedule
        self.manager.allocate_slots = self.allocate_slots

    def allocate_slots(self, request: Any, num_new_tokens: int, *args: Any, **options: Any) -> Any:
        """``KVCacheManager.allocate_slots``: nothing to do for the next token of a request whose last block has room."""
        has_room = num_new_tokens == 1 and request.num_computed_tokens % self.block_size
        if has_room and request.status is self._running and self.requests.get(request.request_id):
            return self.manager.empty_kv_cache_blocks
        return self._allocate(request, num_new_tokens, *args, **options)

    def update_from_output(self, scheduled: Any, output: Any) -> Any:
        """``Scheduler.update_from_output`` for what is not plain; what was withheld goes out before it."""
        alive = self.scheduler.requests
        if len(self.requests) > len(alive):  # some were aborted
            for name in self.requests.keys() - alive.keys():
                del self.requests[name]
        if _is_plain_step(scheduled, output):
            scheduled = replace(scheduled, num_scheduled_tokens=self._write_down(scheduled, output))
        results = self._update(scheduled, output)
        for result in results.values():
            for completion in result.outputs:
                self._add_withheld(completion)
        return results

    def _write_down(self, scheduled: Any, output: Any) -> dict[str, int]:
        """Takes note of the plain tokens of a step; returns what was scheduled of the other requests."""
        rest = {}
        alive, known, scores = self.scheduler.requests, self.requests, output.logprobs
        sampled, index_of = output.sampled_token_ids, output.req_id_to_index
        logprobs = scores.logprobs[:, 0].tolist() if scores is not None else []
        ranks = scores.sampled_token_ranks.tolist() if scores is not None else []
        for name, count in scheduled.num_scheduled_tokens.items():
            request, index = alive.get(name), index_of[name]
            tokens = sampled[index]
            is_running = request is not None and request.status is self._running and not self._dropped(request)
            if count != 1 or len(tokens) != 1 or not is_running:
                rest[name] = count
                continue
            if name not in known:
                if not request.num_output_tokens:  # the first: metrics tell when it came
                    rest[name] = count
                    continue
                known[name] = self._plain(request)
            plain, (token,) = known[name], tokens
            length = request.num_tokens + 1
            if plain is None or token in plain.stops or length >= plain.limit:
                rest[name] = count
                continue
            plain.withheld.tokens.append(token)
            if plain.withheld.wants_logprobs:
                plain.withheld.logprobs.append(logprobs[index])
                plain.withheld.ranks.append(ranks[index])
            self._append(request, token, length)
        return rest

    def _append(self, request: Any, token: int, length: int) -> None:
        """What ``Scheduler.update_from_output`` does to a request that goes on, and now has ``length`` tokens."""
        request._output_token_ids.append(token)
        request._all_token_ids.append(token)
        if length % self.block_size == 0:
            request.update_block_hashes()
        if self._in_flight is not None:
            setattr(request, self._in_flight, getattr(request, self._in_flight) - 1)
        if request.num_output_placeholders:  # scheduled ahead
            request.num_output_placeholders -= 1
            computed = request.num_computed_tokens - request.num_output_placeholders
            if computed % self.block_size == 0:
                self.manager.cache_blocks(request, computed)

    def _plain(self, request: Any) -> _Plain | None:
        sampling = request.sampling_params
        is_watched = (  # at every token: by a grammar, by somebody who wants more than the sampled logprob or wants it now
            sampling is None
            or request.structured_output_request is not None
            or sampling.num_logprobs not in (None, 0)
            or sampling.prompt_logprobs is not None
            or sampling.repetition_detection is not None
            or not self.hand_over.can_wait(sampling)
        )
        if is_watched or request.has_encoder_inputs or request.resumable:
            return None
        stops = frozenset(sampling.stop_token_ids or ()) | {sampling.eos_token_id}
        return _Plain(stops, self._limit(request), Withheld(sampling.num_logprobs is not None))

    def _limit(self, request: Any) -> int:
        return int(min(request.num_prompt_tokens + request.max_tokens, self.scheduler.max_model_len))

    def read_limits(self) -> None:
        """To be called where ``max_tokens`` of requests under way have changed."""
        for name, plain in self.requests.items():
            if plain and name in self.scheduler.requests:
                plain.limit = self._limit(self.scheduler.requests[name])

    def _add_withheld(self, completion: Any) -> None:
        """Puts what was withheld of a completion before what vLLM hands over of it."""
        name = completion.request_id
        plain = self.requests.pop(name, None) if completion.finish_reason is not None else self.requests.get(name)
        if plain and plain.withheld.tokens:
            self.hand_over.give(plain.withheld, completion)
            plain.withheld = Withheld(plain.withheld.wants_logprobs)


def _is_plain_step(scheduled: Any, output: Any) -> bool:
    """Whether a step brought one sampled token a request and nothing else."""
    scores = output.logprobs
    return bool(
        output.sampled_token_ids
        and not scheduled.scheduled_spec_decode_tokens
        and not output.prompt_logprobs_dict
        and not output.pooler_output
        and output.kv_connector_output is None
        and not output.num_nans_in_logits
        and (scores is None or scores.cu_num_generated_tokens is None)
    )
