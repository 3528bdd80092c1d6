"""Signals of a scheduler (save and requeue, or end) are heeded between two steps, on all ranks at the same time."""

from __future__ import annotations

import os
import signal
import stat
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.connectors.signal_connector import _HandlersCompose
from lightning.pytorch.utilities.exceptions import SIGTERMException

from grpo_lightning.distributed.gather import gather_objects
from grpo_lightning.distributed.last_checkpoint import LastCheckpoint

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopSignals(Callback):
    """Takes the place of Lightning's signal handlers while training runs, and calls them between steps.

    They save a checkpoint (SLURM's requeue signal) or talk to the other ranks (SIGTERM) wherever a rank happens to be.
    Ranks hear a signal in different places, one of them often inside a collective, and then wait for each other for
    ever. A step takes seconds to minutes: so long a signal waits, and a scheduler has to give notice. Before SIGTERM,
    Ctrl-C or the end of its terminal (SIGHUP) ends the run, last.ckpt is brought up to the step, so that no step is lost. The
    exit status is 143, 130 or 129, as of a program that the signal ends: the run is not finished. A second Ctrl-C does not wait.

    Args:
        last: Writes that checkpoint.
    """

    def __init__(self, last: LastCheckpoint) -> None:
        self._last = last
        self._asked: set[int] = set()
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Only notes signals from here on; one that came while weights were loading has been noted by Lightning."""
        if trainer.received_sigterm:
            self._asked.add(signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread():  # where Lightning has no handlers either
            return
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if isinstance(handler, _HandlersCompose):
                self._take(number, handler, self._note)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._take(signal.SIGINT, signal.default_int_handler, self._note_interrupt)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup has it ignored
            self._take(signal.SIGHUP, signal.SIG_DFL, self._note_hangup)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Heeds what any rank was sent during the step."""
        self._heed(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Heeds what any rank was sent during an evaluation inside of training."""
        if trainer.state.fn == "fit":
            self._heed(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the signals back to Lightning."""
        self._give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The same after an error."""
        self._give_back()

    def _take(self, number: int, handler: Any, noting: Any) -> None:
        self._handlers[number] = handler
        signal.signal(number, noting)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked.add(number)

    def _note_interrupt(self, number: int, frame: FrameType | None) -> None:
        if number in self._asked:
            raise KeyboardInterrupt
        self._asked.add(number)
        text = "\nCtrl-C: the run ends after this step, with a checkpoint. Once more ends it at once, without one.\n"
        os.write(2, text.encode())  # print is not safe in a handler that may interrupt one

    def _note_hangup(self, number: int, frame: FrameType | None) -> None:
        self._asked.add(number)
        for descriptor in (1, 2):
            keep_writable(descriptor)

    def _heed(self, trainer: Trainer) -> None:
        asked = set().union(*gather_objects(self._asked))
        self._asked = set()
        ending = next((number for number in ENDING if number in asked), None)
        if ending is not None:
            if trainer.training:
                trainer._logger_connector.update_train_step_metrics()  # what Lightning logs after the hook, too late
            self._last.save(trainer, again=trainer.validating)  # one written before this evaluation would leave it out
            raise SIGTERMException(128 + ending)  # the exit status
        for number in sorted(asked & self._handlers.keys()):
            self._handlers[number](number, None)

    def _give_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


def keep_writable(descriptor: int) -> None:
    """Lets what is written to a terminal that is gone go nowhere, instead of ending the step with an error."""
    if not stat.S_ISCHR(os.fstat(descriptor).st_mode):
        return
    try:
        os.write(descriptor, b"\nSIGHUP: the run ends after this step, with a checkpoint.\n")
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
