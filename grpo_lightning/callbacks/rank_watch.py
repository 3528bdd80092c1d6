"""A run of several ranks ends everywhere when one of them ends, and says which one and where."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from grpo_lightning.lifeline import Lifeline

GRACE_SECONDS = 10.0
"""How long a process may take to end by itself, through an error in a collective, before it is ended."""


class RankWatch(Callback):
    """Watches the other ranks from the start of a run to its end; without other ranks it does nothing."""

    def __init__(self) -> None:
        self.rank = 0
        self.place = "its start"
        self._lifeline: Lifeline | None = None
        self._failed = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Connects, once the process group is up and before weights load."""
        self.rank = trainer.global_rank
        if trainer.world_size > 1:
            address = os.environ["MASTER_ADDR"]  # set by the launcher, or by Lightning for the process group
            self._lifeline = Lifeline(self.rank, address, trainer.strategy.broadcast, self._end)

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
        is_asked_for = isinstance(exception, KeyboardInterrupt | SIGTERMException)
        if self._lifeline is not None:
            if self._lifeline.lost is not None:
                exception.add_note(self._lifeline.lost)
            elif not is_asked_for:
                self._lifeline.say({"error": f"{type(exception).__name__}: {exception}"[:500]})
            self._lifeline.close()
        if not is_asked_for:
            exception.add_note(f"On rank {self.rank}, in {self.place}.")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Says goodbye."""
        if self._lifeline is not None:
            self._lifeline.close()
            self._lifeline = None

    def _end(self, message: str) -> None:
        """Says what happened and ends this process, if it does not do so itself."""
        print(
            f"[rank {self.rank}] {message} This rank, in {self.place}, cannot go on without it and ends too. "
            "Continue with --ckpt_path last.",
            file=sys.stderr,
            flush=True,
        )
        timer = threading.Timer(GRACE_SECONDS, self._end_now)
        timer.daemon = True
        timer.start()

    def _end_now(self) -> None:
        if not self._failed:  # stuck in a collective, where no Python exception can reach it
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)
