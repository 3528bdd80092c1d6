"""``python -m`` of a rank that was started with the command: it imports, waits to be wanted, and then is that rank.

It is once the first rank has sent it an environment: a line of JSON on a pipe.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
from contextlib import suppress
from importlib import import_module
from queue import SimpleQueue
from threading import Thread
from typing import IO

from grpo_lightning.distributed.first_rank import end_with_parent
from grpo_lightning.uncollected import uncollected


def main(descriptor: int, module: str, arguments: list[str]) -> None:
    """Imports and waits, then runs; ends without a word where the first rank ends before.

    Args:
        descriptor: Of the pipe's end.
        module: What the command will import.
        arguments: Of the command.
    """
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first rank's end is what ends this process
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.set_inheritable(descriptor, False)
    end_with_parent(os.getppid())
    sys.argv = ["grpo_lightning", *arguments]
    received: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_listen, args=(os.fdopen(descriptor, "rb", buffering=0), received), daemon=True).start()
    with suppress(Exception), uncollected():  # the command meets it again, and says so
        import_module(module)
    environment: dict[str, str] = json.loads(received.get())
    signal.signal(signal.SIGINT, interrupted)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    runpy.run_module("grpo_lightning", run_name="__main__", alter_sys=True)


def _listen(pipe: IO[bytes], received: SimpleQueue[bytes]) -> None:
    with pipe:
        line = pipe.readline()
    if not line.endswith(b"\n"):
        os._exit(0)  # during an import, too
    received.put(line)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
