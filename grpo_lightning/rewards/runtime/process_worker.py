"""Child process that calls one reward. Run as a script: ``python -P process_worker.py FD SECONDS BYTES``.

It receives ``(sys.path, pickled reward)``, answers "ready", or ``("failed", traceback)`` and ends; then it answers each ``Rows`` with ``("outcome", Outcome)``,
``("contract", message)`` or ``("raised", traceback)`` until the other end closes the connection.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import resource
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any


def answer(reward: Any, rows: Any) -> tuple[str, Any]:
    """One call's outcome, or why there is none."""
    from grpo_lightning.rewards.base import RewardContractError
    from grpo_lightning.rewards.runtime.answer_checks import checked_values
    from grpo_lightning.rewards.runtime.reward_call import prepare_call
    from grpo_lightning.rewards.runtime.tracebacks import traceback_of

    try:
        arguments, outcome = prepare_call(reward, rows)
        result = reward(**arguments)
        if inspect.isawaitable(result):
            result = asyncio.run(_awaited(result))
        outcome.rewards = checked_values(result, len(rows), reward.name)
    except RewardContractError as error:
        return "contract", str(error)
    except BaseException as error:  # SystemExit too: the child goes on with the next call
        return "raised", traceback_of(error)
    return "outcome", outcome


async def _awaited(result: Any) -> Any:
    return await result


def loaded(connection: Connection, pickled: bytes) -> Any:
    """The reward; where its module cannot be imported here, the other end is told why, and this process ends."""
    try:
        return pickle.loads(pickled)
    except BaseException as error:
        connection.send(("failed", "".join(traceback.format_exception(error))))
        raise SystemExit(1) from None


def main(descriptor: int, seconds: float, memory_bytes: int) -> None:
    """Sets the limits of this process, then answers requests until the other end closes the connection."""
    connection = Connection(descriptor)
    try:
        serve(connection, seconds, memory_bytes)
    except (EOFError, ConnectionError):  # the trainer ended or was killed
        from grpo_lightning.rewards.runtime.process_tree import VARIABLE, end_descendants

        if VARIABLE in os.environ:
            end_descendants(os.environ[VARIABLE])


def serve(connection: Connection, seconds: float, memory_bytes: int) -> None:
    """Answers requests, one at a time."""
    search_path, pickled = connection.recv()
    sys.path[:] = search_path
    from grpo_lightning.errors import write_all_text

    write_all_text()
    reward = loaded(connection, pickled)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    connection.send("ready")
    while True:
        rows = connection.recv()
        # The pool kills a call that takes too long. If the trainer itself was killed, this limit on processor
        # time ends the process: its signal has no handler.
        signal.setitimer(signal.ITIMER_PROF, 2 * seconds + 2)
        reply = answer(reward, rows)
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send(reply)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
