"""A run of several ranks ends everywhere when one of them ends, and says which one and where."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.call import _call_and_handle_interrupt
from lightning.pytorch.utilities.exceptions import SIGTERMException

from grpo_lightning.distributed import first_rank
from grpo_lightning.distributed.checkpoint_io import newest
from grpo_lightning.distributed.lifeline import Lifeline

GRACE_SECONDS = 10.0
"""How long a process may take to end by itself, through an error in a collective, before it is ended."""
FAREWELL_SECONDS = 30.0
"""The same for a process that has failed: what it releases may wait for the other ranks."""
HEARING_SECONDS = 3.0
"""How long an error waits for news of a lost rank, of which it may be no more than the consequence."""

STOPPED_BY: dict[object, str] = {128 + signal.SIGINT: "Ctrl-C", 128 + signal.SIGHUP: "SIGHUP"}
"""Exit status -> what the user calls it."""


class RankWatch(Callback):
    """Watches the other ranks from the start of a run to its end; without other ranks it does nothing."""

    def __init__(self) -> None:
        self.rank = 0
        self.place = "its start"
        self._lifeline: Lifeline | None = None
        self._trainer: Trainer | None = None
        self._failed = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Connects, once the process group is up and before weights load."""
        self.rank = trainer.global_rank
        self._trainer = trainer
        if trainer.world_size > 1:
            address = os.environ["MASTER_ADDR"]  # set by the launcher, or by Lightning for the process group
            self._lifeline = Lifeline(self.rank, address, trainer.strategy.broadcast, self._end)
            first_rank.met()

    def enter(self, place: str) -> None:
        """Tells the others where this rank is now, such as ``step 12, phase generate``."""
        self.place = place
        if self._lifeline is not None:
            self._lifeline.say({"place": place})

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Enters evaluation; the next step enters its own phases."""
        self.enter("evaluation")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Enters the checkpoint."""
        self.enter("saving a checkpoint")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tells the others, and adds to the traceback where it was."""
        self._failed = True
        lifeline, is_stopped = self._lifeline, isinstance(exception, KeyboardInterrupt | SIGTERMException)
        lost = lifeline.wait_for_loss(0 if is_stopped else HEARING_SECONDS) if lifeline is not None else None
        if lifeline is not None and lost is not None and lifeline.was_stopped:
            is_stopped = True
            _show_no_traceback(exception)  # a collective without the rank that was stopped: nothing to tell
        if not is_stopped:
            exception.add_note(f"On rank {self.rank}, in {self.place}.")
            if lost is not None:
                exception.add_note(lost)
        elif self.rank == 0:
            by = STOPPED_BY.get(getattr(exception, "code", None), "SIGTERM")
            where = f"by {by}, after a step" if isinstance(exception, SIGTERMException) else f"in {self.place}"
            print(f"Stopped {where}. {how_to_continue(trainer)}", file=sys.stderr, flush=True)
        if lifeline is not None:
            reason = {"stopped": True} if is_stopped else {"error": f"{type(exception).__name__}: {exception}"[:500]}
            lifeline.leave({"bye": True} if lost else reason)
            _after(FAREWELL_SECONDS, self._end_if_still_leaving, exception)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Says goodbye."""
        if self._lifeline is not None:
            self._lifeline.close()
            self._lifeline = None

    def _end(self, message: str, is_asked_for: bool) -> None:
        """Says what happened and ends this process, if it does not do so itself."""
        if not is_asked_for:  # who stops a rank stops all of them, and knows why they end
            print(
                f"[rank {self.rank}] {message} This rank, in {self.place}, cannot go on without it and ends too. "
                f"{how_to_continue(self._trainer)}",
                file=sys.stderr,
                flush=True,
            )
        _after(GRACE_SECONDS, self._end_now)

    def _end_now(self) -> None:
        if not self._failed:  # stuck in a collective, where no Python exception can reach it
            _exit()

    def _end_if_still_leaving(self, exception: BaseException) -> None:
        """Ends a process that is stuck in what it does after its error, such as releasing an engine."""
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        while frame is not None and frame.f_code is not _call_and_handle_interrupt.__code__:
            frame = frame.f_back
        if frame is not None:
            traceback.print_exception(exception)
            _exit()


def how_to_continue(trainer: Trainer | None) -> str:
    """The option that goes on from the newest checkpoint of this run."""
    callbacks = [] if trainer is None else trainer.checkpoint_callbacks
    saved = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    if any(Path(callback.last_model_path).exists() for callback in saved if callback.last_model_path):
        return "Continue with --ckpt_path last."
    others = [Path(path) for callback in saved for path in (callback.best_model_path, *callback.best_k_models) if path]
    last = newest(path for path in others if path.exists())
    if last is None and trainer is not None and trainer.ckpt_path:
        last = Path(trainer.ckpt_path)  # stopped before anything new was saved
    if last is not None:
        return f"Continue with --ckpt_path '{last}'."
    return "No checkpoint has been saved yet: without --ckpt_path, the run starts again."


def _after(seconds: float, function: Callable[..., None], *args: Any) -> None:
    timer = threading.Timer(seconds, function, args)
    timer.daemon = True
    timer.start()


def _show_no_traceback(exception: BaseException) -> None:
    """Ends a script that this exception ends with its exit code alone."""
    shown = sys.excepthook
    sys.excepthook = lambda kind, value, trace: None if value is exception else shown(kind, value, trace)


def _exit() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
