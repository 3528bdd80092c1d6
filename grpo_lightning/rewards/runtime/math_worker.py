"""Child process that compares mathematical answers. Run as a script: it imports neither torch nor this package.

Usage: ``python -P math_worker.py FD SECONDS BYTES``, with a multiprocessing connection on file descriptor FD. Requests
are ``(reference, answer)`` pairs; replies are "equal", "different", "unreadable reference" or "timeout".
"""

from __future__ import annotations

import contextlib
import logging
import resource
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify


class OutOfTimeError(BaseException):
    """Not an Exception: sympy and math-verify swallow those."""


def _raise_out_of_time(signum: int, frame: Any) -> None:
    raise OutOfTimeError


def _parse(text: str) -> list[Any]:
    # In a box, so that all of the text is read as one expression: "41 or 42" is a set, not the number 42.
    configs = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    return parse(f"\\boxed{{{text}}}", extraction_config=configs, parsing_timeout=None)


def compare(reference: str, answer: str) -> str:
    """Whether the answer equals the reference as mathematics."""
    gold = _parse(reference)
    if not gold:
        return "unreadable reference"
    return "equal" if verify(gold, _parse(answer), timeout_seconds=None) else "different"


def main(descriptor: int, seconds: float, memory_bytes: int) -> None:
    """Sets the limits of this process, then answers requests until the other end closes the connection."""
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    signal.signal(signal.SIGALRM, _raise_out_of_time)
    connection = Connection(descriptor)
    with contextlib.suppress(EOFError, ConnectionError):  # the trainer ended or was killed
        serve(connection, seconds)


def serve(connection: Connection, seconds: float) -> None:
    """Answers requests, one at a time."""
    connection.send("ready")
    while True:
        reference, answer = connection.recv()
        # The alarm interrupts Python code. Code that it cannot interrupt is killed by the pool, or, where the
        # trainer itself was killed, by the limit on processor time, whose signal has no handler.
        signal.setitimer(signal.ITIMER_PROF, 2 * seconds + 2)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            reply = compare(reference, answer)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except OutOfTimeError:
            reply = "timeout"
        except (RecursionError, MemoryError):
            reply = "different"
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send(reply)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
