"""The batch of the next step under async rollouts: sampled in a thread, and kept in checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass
from threading import Thread
from typing import Any

import torch

from grpo_lightning.distributed.gather import gather_objects
from grpo_lightning.generation.base import SamplingSettings, WeightsLost
from grpo_lightning.rewards import RewardTable
from grpo_lightning.rollouts.groups import join_rollouts, rollouts_of_state, rollouts_state, take_groups
from grpo_lightning.rollouts.kept_rewards import has_environments, rewards_of_state, rewards_state
from grpo_lightning.types import PromptBatch, Rollouts

logger = logging.getLogger(__name__)

Pending = tuple[Rollouts, Callable[[], RewardTable]]
"""Rollouts, and a function that waits for their rewards."""
INTERRUPT_SECONDS = 30.0
"""How long an interrupted thread may take to end."""


@dataclass(frozen=True)
class Origin:
    """The step that a batch is sampled for, and the weights that sample it."""

    step: int
    """GRPO steps done when it is trained on; decides the seeds of its completions."""
    weights_step: int
    """GRPO steps that had made the weights."""
    weights_update: int
    """Optimizer steps that had made the weights."""
    global_step: int
    """Optimizer steps as its rewards see them: what they will be when it is trained on, if none is skipped."""


@dataclass(frozen=True)
class Ready:
    """A batch whose rollouts are there."""

    origin: Origin
    uids: list[int]
    prompt_ids: list[list[int]]
    """As the data has them: those of the rollouts may hold what an environment added."""
    rollouts: Rollouts
    await_rewards: Callable[[], RewardTable] | None
    """None where scoring has to be started: a checkpoint keeps rewards only of environments, which it cannot keep."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values; waits for rewards that must be kept."""
        prompts = {"uids": self.uids, "prompt_ids": self.prompt_ids}
        state = {"origin": asdict(self.origin), **prompts, "rollouts": rollouts_state(self.rollouts)}
        if self.await_rewards is not None and has_environments(self.rollouts):
            state["rewards"] = rewards_state(self.await_rewards)
        return state


@dataclass(frozen=True)
class UnderWay:
    """A batch whose rollouts are under way."""

    origin: Origin
    batch: PromptBatch
    sampled: Future[Pending]


class NextBatch:
    """The batch of the next step, at most one, and where the batch of the step in progress is remembered for its checkpoint.

    Args:
        sampling: How the batches are sampled.
    """

    def __init__(self, sampling: SamplingSettings) -> None:
        self.sampling = sampling
        self._under_way: UnderWay | None = None
        self._ready: Ready | None = None
        """Of the step in progress, until the next one takes its own."""
        self._stored: list[dict[str, Any]] = []
        """Parts of a batch, each of a rank, from a checkpoint or from a run that was torn down."""

    def launch(self, origin: Origin, batch: PromptBatch, sample: Callable[[], Pending]) -> None:
        """Runs ``sample`` in a thread: no collectives, no device."""
        assert self._under_way is None, "a batch was launched before the last one was taken"
        sampled: Future[Pending] = Future()

        def work() -> None:
            try:
                sampled.set_result(sample())
            except BaseException as error:  # it is raised again where the batch is waited for
                sampled.set_exception(error)

        self._under_way = UnderWay(origin, batch, sampled)
        Thread(target=work, name="async_rollouts", daemon=True).start()

    def take(self, step: int, batch: PromptBatch) -> Ready | None:
        """Waits for the rollouts of the step's batch; None where it has to be sampled now.

        Args:
            step: GRPO steps done.
            batch: This rank's prompts.

        Raises:
            Exception: What ended the thread.
        """
        self._ready = self._from_thread(step, batch) or self._from_store(step, batch)
        self._stored = []
        return self._ready

    def _from_thread(self, step: int, batch: PromptBatch) -> Ready | None:
        under_way = self._under_way
        if under_way is None:
            return None
        try:
            rollouts, await_rewards = under_way.sampled.result()
        except WeightsLost as error:
            logger.warning("%s The batch is sampled again as a whole, from the policy as it is now.", error)
            self._under_way = None
            return None
        self._under_way = None
        if under_way.origin.step != step or under_way.batch.prompt_ids != batch.prompt_ids:
            logger.warning("Step %d trains on other prompts than async rollouts sampled; it samples its own.", step + 1)
            return None
        return Ready(under_way.origin, batch.uids, batch.prompt_ids, rollouts, await_rewards)

    def _from_store(self, step: int, batch: PromptBatch) -> Ready | None:
        """The batch's groups out of those that all ranks of the earlier run had, however many they were."""
        parts = [part for part in self._stored if part["origin"]["step"] == step]
        if not parts:
            return None
        uids = [uid for part in parts for uid in part["uids"]]
        rollouts = join_rollouts([rollouts_of_state(part["rollouts"]) for part in parts])
        places = {uid: b for b, uid in enumerate(uids)}
        chosen = [places.get(uid, -1) for uid in batch.uids]
        prompts = [ids for part in parts for ids in part["prompt_ids"]]
        pairs = zip(chosen, batch.prompt_ids, strict=True)
        if any(b < 0 or prompts[b] != list(ids) for b, ids in pairs):
            logger.warning(
                "The checkpoint holds rollouts of other prompts than step %d's; it samples its own.", step + 1
            )
            return None
        rows = [(rollouts.group == b).nonzero()[:, 0] for b in chosen]
        origin, taken = Origin(**parts[0]["origin"]), take_groups(rollouts, chosen, rows)
        rewards = rewards_of_state([part.get("rewards") for part in parts], torch.cat(rows))
        return Ready(origin, batch.uids, batch.prompt_ids, taken, rewards)

    def wait(self) -> None:
        """Until no thread samples: other weights may be sent, and the batch stays to be taken.

        Raises:
            Exception: What ended the thread.
        """
        if self._under_way is None:
            return
        error = self._under_way.sampled.exception()
        if error is not None and not isinstance(error, WeightsLost):
            raise error

    def end(self, step: int, interrupt: Callable[[], None]) -> None:
        """Ends the thread, and keeps what a checkpoint written after this would hold.

        Args:
            step: GRPO steps done.
            interrupt: Makes the sampling under way end.
        """
        under_way = self._under_way
        if under_way is not None and not under_way.sampled.done():
            interrupt()
            wait([under_way.sampled], INTERRUPT_SECONDS)
        if under_way is not None and (not under_way.sampled.done() or under_way.sampled.exception() is not None):
            self._under_way = None
        self._stored = self._parts(step)
        self._under_way = self._ready = None

    def state_dict(self, step: int) -> dict[str, Any]:
        """The batch of the next step, or of the one that failed, of all ranks; waits for it. Called on every rank.

        Args:
            step: GRPO steps done.
        """
        parts = [part for rank in gather_objects(self._parts(step)) for part in rank]
        unique = {tuple(part["uids"]): part for part in parts}  # ranks that have resumed hold the same parts
        return {"sampling": asdict(self.sampling), "parts": list(unique.values())}

    def _parts(self, step: int) -> list[dict[str, Any]]:
        if self._ready is not None and self._ready.origin.step == step:
            return [self._ready.state_dict()]
        under_way = self._under_way
        if under_way is None or under_way.origin.step != step:
            return [part for part in self._stored if part["origin"]["step"] == step]
        error = under_way.sampled.exception()
        if error is not None:  # it is raised where the batch is waited for; the checkpoint is no less valid
            logger.warning("The checkpoint is without the next batch, which failed: %r", error)
            return []
        batch = under_way.batch
        return [Ready(under_way.origin, batch.uids, batch.prompt_ids, *under_way.sampled.result()).state_dict()]

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """The next step trains on the saved rollouts, if they were sampled as this run samples.

        Args:
            state: None of a run without async rollouts.
        """
        state = state or {"sampling": {}, "parts": []}
        changed = self.sampling.changed_since(state["sampling"])
        if changed:
            logger.warning("The checkpoint's next batch was sampled with another %s; it is sampled again.", changed)
        whole = [part for part in state["parts"] if "prompt_ids" in part]  # those of before 0.4 have none
        self._stored = [] if changed else whole
