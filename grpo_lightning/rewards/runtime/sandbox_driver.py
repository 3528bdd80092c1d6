"""Child process that runs one program with its test, then says how that went. Run as a script, with -I.

Usage: ``python -I sandbox_driver.py FD``. It reads a JSON request from standard input and writes
``<token> passed`` or ``<token> failed`` to the file descriptor FD.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any

REFUSED = ("socket.", "subprocess.", "os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "ctypes.", "pty.")


def _refuse(event: str, arguments: Any) -> None:
    if event.startswith(REFUSED):
        raise PermissionError(f"{event} is not allowed here")


def _limit(request: dict[str, Any]) -> None:
    def hard(kind: int, value: int) -> None:
        ceiling = resource.getrlimit(kind)[1]
        value = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        resource.setrlimit(kind, (value, value))

    hard(resource.RLIMIT_CORE, 0)
    hard(resource.RLIMIT_NOFILE, 64)
    hard(resource.RLIMIT_FSIZE, request["file_size"])
    hard(resource.RLIMIT_AS, request["memory"])
    if not request["refuse"]:  # counted inside the namespace; outside it would count the user's other processes
        hard(resource.RLIMIT_NPROC, 64)
    hard(resource.RLIMIT_CPU, int(request["seconds"]) + 1)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, request["seconds"])  # from here on, so that a slow start does not count


def main(descriptor: int) -> None:
    """Runs the program in a child and leaves when that has ended; what it left behind in the namespace ends with it."""
    request = json.loads(sys.stdin.buffer.read())
    # The first process of a namespace ignores signals that it does not handle, the alarm among them: hence one more.
    child = os.fork()
    if child == 0:
        run(request, descriptor)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(code if code >= 0 else 128 - code)


def run(request: dict[str, Any], descriptor: int) -> None:
    """Runs the program; its namespace is all that it is given."""
    token, test, write, leave = request.pop("token"), request["test"], os.write, os._exit
    os.dup2(request["stdin"], 0)
    os.close(request["stdin"])
    sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115 - the program's standard input
    _limit(request)
    if request["refuse"]:
        sys.addaudithook(_refuse)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    try:
        try:
            exec(compile(request["code"], "<completion>", "exec"), namespace)
        except SystemExit:  # a program may end itself, unless a test was to follow
            if test is not None:
                raise
        if test is not None:
            exec(compile(test, "<test>", "exec"), namespace)
        verdict = "passed"
        sys.stdout.flush()
    except BaseException:  # SystemExit and KeyboardInterrupt of the program, too
        verdict = "failed"
    write(descriptor, f"{token} {verdict}".encode())
    leave(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
