"""Where environments live: in threads of this process, or each in a child of its own. Kept and reset, as TRL does."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from functools import partial
from typing import Any

from grpo_lightning.concurrency.event_loop import ends_unheard, in_thread
from grpo_lightning.concurrency.worker_pool import UnsentReplyError, Worker, WorkerError, WorkerPool, WorkerStartError
from grpo_lightning.environments.calls import Calls
from grpo_lightning.environments.environment_class import EnvironmentClass
from grpo_lightning.environments.episode import EnvironmentContractError, EnvironmentFault, RaisedFault, ToolMistake
from grpo_lightning.environments.instance import Answer, Instance, InstanceRunner
from grpo_lightning.environments.slots import CallSlots

PROCESSES = 8
"""Environments at once with ``isolation = "process"``, unless the class has a ``concurrency``."""
MEMORY_BYTES = 4 * 2**30


class ThreadHost:
    """Lends environments of one class, in this process.

    Args:
        described: Their class.
        calls: Makes the calls.
        limit: Characters of each text.
    """

    at_once: int | None = None
    """Leases that there can be at the same time, further ones wait for one that is given back; None for any number."""

    def __init__(self, described: EnvironmentClass, calls: Calls, limit: int) -> None:
        self.described, self.calls, self.limit = described, calls, limit
        self.slots = CallSlots(described.concurrency)
        self.idle: list[Instance] = []
        self.closing: set[asyncio.Task[None]] = set()

    def lease(self) -> ThreadLease:
        """An environment that nobody else has; it is found or made when it is first asked."""
        return ThreadLease(self)

    async def close(self) -> None:
        """Calls the environments' ``close``."""
        await asyncio.gather(*self.closing, *(_closed(instance, self) for instance in self.idle))
        self.idle = []


class ThreadLease:
    """One environment of this process, for one episode."""

    def __init__(self, host: ThreadHost) -> None:
        self.host = host
        free = next((n for n, instance in enumerate(host.idle) if instance.is_free), None)
        self.instance = Instance(host.described, host.limit) if free is None else host.idle.pop(free)

    @property
    def environment(self) -> Any:
        """The user's object."""
        return self.instance.environment

    async def ask(self, operation: str, *arguments: Any) -> Answer:
        """The answer to an operation; see :class:`~grpo_lightning.environments.instance.Instance`."""
        start, finish = self.instance.operation(operation, *arguments)
        what = f"{self.host.described.name}.{arguments[0] if operation == 'call' else operation}"
        return await self.host.calls(start, finish, what, self.host.slots)

    async def give_back(self, is_sound: bool) -> None:
        """Ends the lease; an environment that is not sound is thrown away."""
        if is_sound:
            self.host.idle.append(self.instance)
            return
        # Its connections end; nobody waits for that, since it may hang as the call before did.
        task = asyncio.ensure_future(_closed(self.instance, self.host))
        ends_unheard(task)
        self.host.closing.add(task)
        task.add_done_callback(self.host.closing.discard)


async def _closed(instance: Instance, host: ThreadHost) -> None:
    start, finish = instance.operation("close")
    try:
        await host.calls(start, finish, f"{host.described.name}.close", host.slots)
    except (EnvironmentFault, ToolMistake):
        return  # the run goes on without it; calls.faults has counted it


class ProcessHost:
    """Each environment in a child process: what it crashes, locks, seeds or allocates is its own.

    Args:
        described: Their class, which a child must be able to import.
        calls: Has the deadline and the counts.
        limit: Characters of each text.

    Raises:
        EnvironmentContractError: If the class cannot be sent to a child.
    """

    def __init__(self, described: EnvironmentClass, calls: Calls, limit: int) -> None:
        unbound = dataclasses.replace(described, tools={})  # they are bound to what no child knows
        make = partial(InstanceRunner, unbound, limit)
        self.at_once: int | None = described.concurrency or PROCESSES
        try:
            self.pool = WorkerPool(make, self.at_once, calls.deadline, MEMORY_BYTES, "environment's")
        except Exception as error:  # pickle raises many kinds
            raise EnvironmentContractError(
                f"{described.name} has isolation = 'process' and cannot be sent to one: {error}. Define it in a module of "
                "its own."
            ) from error
        self.described, self.calls = described, calls

    def lease(self) -> ProcessLease:
        """See ``ThreadHost.lease``."""
        return ProcessLease(self)

    async def close(self) -> None:
        """Ends the children."""
        self.pool.close()


class ProcessLease:
    """One environment of a child process, for one episode; see ``ThreadLease``."""

    def __init__(self, host: ProcessHost) -> None:
        self.host = host
        self.worker: Worker | None = None
        self.environment: Any = None
        """The user's object is in the child."""
        self._lock = threading.Lock()
        self._is_over = False

    async def ask(self, operation: str, *arguments: Any) -> Answer:
        """See ``ThreadLease.ask``."""
        if self.worker is None:
            await in_thread(self._take)
        what = f"{self.host.described.name}.{arguments[0] if operation == 'call' else operation}"
        try:
            kind, content = await in_thread(lambda: self._ask((operation, *arguments)))
        except UnsentReplyError as error:
            raise EnvironmentFault(f"{what}: what it gave cannot leave its process: {error}") from error
        if kind == "mistake":
            raise ToolMistake(content)
        if kind == "contract":
            raise EnvironmentContractError(content)
        if kind == "raised":
            self.host.calls.faults["exceptions"] += 1
            said, trace = content
            raise RaisedFault(f"{what} raised in its process:\n{trace}", said)
        if kind == "fault":
            raise EnvironmentFault(content)
        answer: Answer = content
        return answer

    def _take(self) -> None:
        try:
            worker = self.host.pool.take()
        except WorkerStartError as error:
            raise EnvironmentContractError(
                f"{self.host.described.name} has isolation = 'process', and its process cannot import it. Define it in a "
                f"module that imports without this script or notebook. The process said:\n{error}"
            ) from error
        except WorkerError as error:
            raise EnvironmentFault(f"{self.host.described.name}: {error}") from error
        with self._lock:
            if not self._is_over:
                self.worker = worker
                return
        self.host.pool.give_back(worker)  # the episode was closed while it waited

    def _ask(self, request: tuple[Any, ...]) -> tuple[str, Any]:
        if self.worker is None:
            raise EnvironmentFault(f"{self.host.described.name}: the episode is closed.")
        try:
            reply: tuple[str, Any] = self.host.pool.ask(self.worker, request)
        except WorkerError as error:
            self.worker = None
            self._is_over = True
            self.host.calls.faults["time_outs" if isinstance(error.__cause__, TimeoutError) else "exceptions"] += 1
            raise EnvironmentFault(f"{self.host.described.name}: {error}") from error
        return reply

    async def give_back(self, is_sound: bool) -> None:
        """See ``ThreadLease.give_back``."""
        with self._lock:
            worker, self.worker, self._is_over = self.worker, None, True
        if worker is not None:
            await in_thread(lambda: (self.host.pool.give_back if is_sound else self.host.pool.drop)(worker))


Host = ThreadHost | ProcessHost
Lease = ThreadLease | ProcessLease
