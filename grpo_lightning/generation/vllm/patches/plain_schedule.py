"""vLLM's schedule of a step in which all requests go on by one token, without its loop over what else may happen to each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class KnownRequest(Protocol):
    """What has to be known of a request."""

    limit: int
    """Tokens of prompt and completion with which it ends at the latest."""


class PlainSchedule:
    """Stands before ``Scheduler.schedule``, in which a request that goes on costs more than in all the rest of a step.

    A step is plain if nothing waits, nobody can be preempted for want of memory, and each request that runs samples one token.
    vLLM then schedules an empty step, with everything else that it does at one, and the requests are put into it; any other
    step is vLLM's own.

    Args:
        scheduler: vLLM's, of an engine without pipeline ranks, drafts and transfers.
        known: By id, requests whose tokens are sampled one by one until they end; None for any other.
        block_size: Tokens in a block of its cache of keys and values.
    """

    def __init__(self, scheduler: Any, known: Mapping[str, KnownRequest | None], block_size: int) -> None:
        self.scheduler, self.manager = scheduler, scheduler.kv_cache_manager
        self.known, self.block_size = known, block_size
        self._schedule, self._unpaused = scheduler.schedule, scheduler._pause_state

    def schedule(self, *args: Any, **options: Any) -> Any:
        """``Scheduler.schedule``."""
        scheduler, running = self.scheduler, self.scheduler.running
        if not self._is_plain(running):
            return self._schedule(*args, **options)
        names = [request.request_id for request in running]
        tokens = dict.fromkeys(names, 1)
        blocks = dict.fromkeys(names, self.manager.empty_kv_cache_blocks)
        for request in running:
            if not request.num_computed_tokens % self.block_size:
                blocks[request.request_id] = self.manager.allocate_slots(request, 1)
        requests = scheduler._make_cached_request_data(running, [], tokens, {}, blocks)
        scheduler.running = []
        try:
            scheduled = self._schedule(*args, **options)
        finally:
            scheduler.running = running
        scheduled.scheduled_cached_reqs, scheduled.num_scheduled_tokens = requests, tokens
        scheduled.total_num_scheduled_tokens = len(names)
        if getattr(scheduled, "num_common_prefix_blocks", None):  # of versions that still use them
            scheduled.num_common_prefix_blocks = self.manager.get_num_common_prefix_blocks(names[0])
        if not scheduler.use_v2_model_runner:
            scheduler.prev_step_scheduled_req_ids.update(names)
        scheduler._update_after_schedule(scheduled)
        return scheduled

    def _is_plain(self, running: list[Any]) -> bool:
        scheduler, known = self.scheduler, self.known
        count = len(running)
        if (
            not count
            or len(scheduler.requests) != count  # others wait
            or count > scheduler.max_num_scheduled_tokens
            or count > self.manager.block_pool.get_num_free_blocks()
            or scheduler._pause_state is not self._unpaused
        ):
            return False
        for request in running:
            plain, computed = known.get(request.request_id), request.num_computed_tokens
            if not plain or computed + 2 >= plain.limit:  # perhaps its last token is being computed
                return False
            if request.num_tokens + request.num_output_placeholders - computed != 1:
                return False
        return True
