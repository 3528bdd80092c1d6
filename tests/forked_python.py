"""Programs in Python that a forked process starts are forks too, without the seconds that their imports take."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any


class ForkedPython(subprocess.Popen):
    """``subprocess.Popen``, for which ``python -m MODULE ...`` and ``python FILE.py ...`` is no new interpreter.

    All else about the process is as asked for: its session, folder, variables, standard streams and end. Programs that
    are handed open files are started as ever: the ranks of a run, whose libraries ask for their rank as they are imported.
    """

    def __init__(self, args: Any, **options: Any) -> None:
        program = program_of(args)
        if program is not None and not options.get("pass_fds"):
            environment = dict(options.get("env") or os.environ)
            options["preexec_fn"] = lambda: be(program, environment)  # called in the child, when all else is done
        super().__init__(args, **options)


def become(run: Callable[[], None]) -> None:
    """Runs it as a process runs its program, and ends the process with its status."""
    status = 0
    try:
        run()
    except SystemExit as ended:
        status = _status(ended)
    except KeyboardInterrupt:  # while the command line was being read
        status = 128 + signal.SIGINT
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]  # as an uncaught exception ends a script
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def write_to_own_streams() -> None:
    """Prints into what the descriptors of this process are now."""
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def write_into(path: Path) -> None:
    """Lets this process's output go to the end of a file."""
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    write_to_own_streams()


def run_file(path: Path, arguments: Sequence[str]) -> None:
    """A script, as ``python FILE.py`` runs it."""
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


def program_of(args: Any) -> Callable[[], None] | None:
    """What a command line runs, where it is a program in Python."""
    if isinstance(args, str | bytes) or list(args[:1]) != [sys.executable]:
        return None
    word, *arguments = args[1:]
    if word == "-m":
        return lambda: _run_module(*arguments)
    return (lambda: run_file(Path(word), arguments)) if word.endswith(".py") else None


def _run_module(module: str, *arguments: str) -> None:
    sys.argv = [module, *arguments]
    sys.path.insert(0, os.getcwd())
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def be(program: Callable[[], None], environment: Mapping[str, str]) -> None:
    """The process that runs the program with this environment, from here to its end."""
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    resource_tracker._resource_tracker.__init__()  # type: ignore[misc]  # its pipe was among them
    write_to_own_streams()
    sys.stdin = os.fdopen(0, closefd=False)  # multiprocessing's was among them too
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # subprocess has restored them, and an interpreter ignores them
        signal.signal(number, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    become(program)


def _status(ended: SystemExit) -> int:
    if ended.code is None or isinstance(ended.code, int):
        return ended.code or 0
    print(ended.code, file=sys.stderr)
    return 1
