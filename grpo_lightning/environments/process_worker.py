"""Child process that holds one environment. Run as a script: ``python -P process_worker.py FD SECONDS BYTES``.

It receives ``(sys.path, pickled class, limit)``, answers "ready", or ``("failed", traceback)`` and ends; then it answers
each ``(operation, *arguments)`` with ``("answer", Answer)``, ``("fault", text)``, ``("mistake", text)``,
``("contract", text)`` or ``("raised", traceback)``.
"""

from __future__ import annotations

import asyncio
import inspect
import pickle
import resource
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any


class InstanceRunner:
    """Runs operations on one environment, asynchronous ones on a loop that lasts."""

    def __init__(self, pickled: bytes, limit: int) -> None:
        from grpo_lightning.environments.instance import Instance

        self.instance = Instance(pickle.loads(pickled), limit)
        self.loop = asyncio.new_event_loop()

    def answer(self, operation: str, *arguments: Any) -> tuple[str, Any]:
        """What it gave, or why it gave nothing."""
        from grpo_lightning.environments.episode import EnvironmentContractError, EnvironmentFault, ToolMistake
        from grpo_lightning.environments.printed import Tail, captured
        from grpo_lightning.rewards.runtime.tracebacks import traceback_of

        tail = Tail()
        try:
            with captured(tail):
                start, finish = self.instance.operation(operation, *arguments)
                raw = start()
                return "answer", finish(self.loop.run_until_complete(raw) if inspect.isawaitable(raw) else raw)
        except ToolMistake as error:
            return "mistake", str(error)
        except EnvironmentContractError as error:
            return "contract", str(error)
        except EnvironmentFault as error:
            return "fault", str(error)
        except BaseException as error:  # SystemExit too: the child goes on
            return "raised", (str(error), traceback_of(error) + (f"\nIt printed:\n{tail.text}" if tail.text else ""))


def main(descriptor: int, seconds: float, memory_bytes: int) -> None:
    """Sets the limits of this process, then answers requests until the other end closes the connection."""
    connection = Connection(descriptor)
    search_path, pickled, limit = connection.recv()
    sys.path[:] = search_path
    try:
        runner = InstanceRunner(pickled, limit)
    except BaseException as error:
        connection.send(("failed", "".join(traceback.format_exception(error))))
        raise SystemExit(1) from None
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    connection.send("ready")
    while True:
        try:
            operation, *arguments = connection.recv()
        except (EOFError, ConnectionError):  # the run ended or was killed
            return
        # The pool kills a call that takes too long. If the run itself was killed, this ends the process.
        signal.setitimer(signal.ITIMER_PROF, 2 * seconds + 2)
        reply = runner.answer(operation, *arguments)
        signal.setitimer(signal.ITIMER_PROF, 0)
        try:
            connection.send(reply)
        except Exception as error:  # pickle raises many kinds, before anything is sent
            connection.send(("fault", f"{operation}: what it gave cannot leave its process: {error}"))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
