"""Ranks that one of them leaves early: what each of the others wrote, and how and when it ended."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fork_server import CONTEXT
from ports import free_port
from ranks import launcher_variables
from runs import make_data, make_module, make_trainer, share_of_digits, write_prompts

from grpo_lightning.distributed import rank_watch
from grpo_lightning.generation import TransformersGenerator

SECONDS = 60
"""Within which every rank has to end once one of them has."""


PIDS = Path()
"""Where ranks that one of them interrupts leave their process ids."""


@dataclass
class Ended:
    """How a rank ended."""

    code: int | None
    """Exit code, or minus the signal; None where it had to be killed because it went on."""
    output: str
    seconds: float
    """After the first rank."""


def end_of_ranks(count: int, function: Callable[..., None], folder: Path, *args: Any) -> list[Ended]:
    """Runs ``function(folder, *args)`` on ``count`` ranks until all have ended, or ``SECONDS`` after the first."""
    port = free_port()
    outputs = [folder / f"rank{rank}.txt" for rank in range(count)]
    ranks = [
        CONTEXT.Process(target=_main, args=(rank, count, port, output, function, (folder, *args)))
        for rank, output in enumerate(outputs)
    ]
    for rank in ranks:
        rank.start()
    ends: dict[int, float] = {}
    limit = time.monotonic() + 2 * SECONDS
    while len(ends) < count and time.monotonic() < limit:
        for number, rank in enumerate(ranks):
            if number not in ends and not rank.is_alive():
                limit = min(limit, time.monotonic() + SECONDS)
                ends[number] = time.monotonic()
        time.sleep(0.02)
    for rank in ranks:
        if rank.is_alive():
            rank.kill()
    first = min(ends.values(), default=0.0)
    found = []
    for number, rank in enumerate(ranks):
        rank.join()
        code = rank.exitcode if number in ends else None
        found.append(Ended(code, outputs[number].read_text(), ends.get(number, 2 * SECONDS) - first))
    return found


def _main(rank: int, count: int, port: int, output: Path, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a fork server's children ignore
    torch.set_num_threads(1)
    os.environ.update(launcher_variables(rank, count, port))
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    try:
        function(*args)
    except SystemExit as error:
        os._exit(error.code if isinstance(error.code, int) else 1)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]  # as an uncaught exception ends a script
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def kill() -> None:
    """As the kernel does with a process when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    """A bug that shows on one rank only."""
    raise ArithmeticError("one rank only")


def fail_and_hang() -> None:
    """An error after which what is released waits for ranks that are gone."""
    TransformersGenerator.stop = lambda self: time.sleep(2 * SECONDS)  # type: ignore[method-assign]
    rank_watch.FAREWELL_SECONDS = 3.0
    fail()


def interrupt() -> None:
    """Ctrl-C reaches every process of a terminal; the second one does not wait for the end of the step."""
    for _ in range(2):
        for path in PIDS.glob("*"):
            os.kill(int(path.read_text()), signal.SIGINT)
        time.sleep(1)
    time.sleep(SECONDS)


def fit_until(folder: Path, model_dir: Path, phase: str, leaving: int, leave: Callable[[], None]) -> None:
    """Trains with an evaluation after every step; at the second time in this phase one rank leaves."""
    global PIDS
    PIDS = folder / "pids"
    PIDS.mkdir(exist_ok=True)
    Path(PIDS, str(os.getpid())).write_text(str(os.getpid()))
    module = make_module(model_dir, rewards=[share_of_digits])
    methods = {
        "generate": (module.source.generator, "generate"),
        "rewards": (module, "advantages"),
        "train": (module, "policy_loss"),
        "evaluation": (module.evaluation, "evaluate"),
    }
    place, name = methods[phase]
    original = getattr(place, name)

    def method(*args: Any, **kwargs: Any) -> Any:
        if module.steps_done == 1 and module.global_rank == leaving and phase in module.rank_watch.place:
            leave()
        return original(*args, **kwargs)

    setattr(place, name, method)
    count = int(os.environ["WORLD_SIZE"])
    trainer = make_trainer(folder, 3, devices=count, strategy="ddp", val_check_interval=1)
    held_out = write_prompts(folder / f"eval{trainer.global_rank}.jsonl", count)
    trainer.fit(module, datamodule=make_data(folder, batch_size=2, eval_dataset=str(held_out)))
