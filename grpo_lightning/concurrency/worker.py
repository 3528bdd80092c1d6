"""A child of a worker pool. Run as a script: ``python -P worker.py FD SECONDS BYTES``.

It receives ``(sys.path, work)``, where work is a pickled function that makes the one that answers, or the path of a file
that defines ``answer``. It says ``("ready", None)``, or ``("failed", traceback)`` and ends; then it answers each request with
``("reply", answer)``, or ``("unsent", why)`` for an answer that cannot be pickled, until the other end closes the connection. Before its work it imports nothing but the standard library.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import resource
import runpy
import select
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


def loaded(connection: Connection) -> Callable[[Any], Any]:
    """What answers requests; where it cannot be had, the other end is told why, and this process ends."""
    sys.path[:], work = connection.recv()
    try:
        answer = runpy.run_path(work)["answer"] if isinstance(work, str) else pickle.loads(work)()
    except BaseException as error:
        connection.send(("failed", "".join(traceback.format_exception(error))))
        raise SystemExit(1) from None
    return answer


def serve(connection: Connection, seconds: float, memory_bytes: int) -> None:
    """Answers requests, one at a time."""
    answer = loaded(connection)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    connection.send(("ready", None))
    while True:
        request = connection.recv()
        # The pool kills a call that takes too long. If the trainer itself was killed, this limit on processor
        # time ends the process: its signal has no handler.
        signal.setitimer(signal.ITIMER_PROF, 2 * seconds + 2)
        reply = answer(request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        try:
            connection.send(("reply", reply))
        except (EOFError, ConnectionError):
            raise
        except Exception as error:  # pickle raises many kinds, before anything is sent
            connection.send(("unsent", str(error)))


def end_with(descriptor: int) -> None:
    """Ends this process, and what it has started, when the other end closes the connection while a call is under way.

    Nobody reads the connection then, so the kernel is asked for a signal.
    """

    def hear(*_: Any) -> None:
        connection = select.poll()
        connection.register(descriptor, 0)  # of which only the end is told
        if connection.poll(0):
            end_what_was_started()
            os.kill(os.getpid(), signal.SIGKILL)

    signal.signal(signal.SIGIO, hear)
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)


def end_what_was_started() -> None:
    """See ``process_tree``, which is imported when it is needed."""
    from grpo_lightning.concurrency.process_tree import end_started

    end_started()


def main(descriptor: int, seconds: float, memory_bytes: int) -> None:
    """Serves until the other end closes the connection, and takes along what its work has started."""
    end_with(descriptor)
    try:
        serve(Connection(descriptor), seconds, memory_bytes)
    except (EOFError, ConnectionError):  # the trainer ended or was killed
        end_what_was_started()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
