"""However a run ends, its last checkpoint is of its last step, at the place in the data where that step left off."""

from __future__ import annotations

import os
from copy import deepcopy
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from grpo_lightning.distributed.checkpoint_check import FORMAT
from grpo_lightning.distributed.checkpoint_io import CheckpointNotWrittenError
from grpo_lightning.distributed.rank_watch import RankWatch

NO_STEP = -1
"""What a ModelCheckpoint has saved that has to save the present step, whatever it takes for saved."""


class LastCheckpoint(Callback):
    """Brings last.ckpt up to the last step at the end of training, and at an error between two steps.

    At the end of a run Lightning counts the epoch as finished, whether it was or not, and whoever goes on from such a
    checkpoint misses the rest of it. So the place is noted after every step, and that is what a checkpoint gets that is
    written before the next one.

    It comes before all other callbacks: the checkpoint is there before anything that may fail at the end, such as an export.
    One serves all runs of a module: ``trainer.save_checkpoint`` may come after a fit, and after an evaluation that follows it.

    Args:
        watch: Says where the run is; a save after an error must not change what it says of the error.
    """

    def __init__(self, watch: RankWatch) -> None:
        self._watch = watch
        self._place: dict[str, Any] | None = None
        self._steps: tuple[int, int] | None = None
        self._moved: tuple[int, int] | None = None
        """The steps after the last one that changed the weights: those since then were skipped."""
        self._not_written: CheckpointNotWrittenError | None = None
        self._folder = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Goes to the front, and makes paths independent of the working directory, which is not the run's alone."""
        everyone: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        trainer.callbacks = [self, *(callback for callback in everyone if callback is not self)]  # type: ignore[attr-defined]
        if "://" not in str(trainer.default_root_dir):
            trainer._default_root_dir = str(Path(trainer.default_root_dir).absolute())  # type: ignore[attr-defined]
        self._folder = os.getcwd()
        if stage == "fit":
            self._place = self._steps = self._moved = self._not_written = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the steps that are done; the place is Lightning's own until the next one ends."""
        self._steps = self._moved = _steps(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes the place; undoes a change of the working directory, which rewards share with the run."""
        self._place, self._steps = deepcopy(trainer.fit_loop.state_dict()), _steps(trainer, pl_module)
        if self._moved is None or self._moved[0] != self._steps[0]:
            self._moved = self._steps
        if _working_directory() != self._folder:
            rank_zero_warn(
                f"A reward or callback changed the working directory to {_working_directory()}; the run goes back to "
                f"{self._folder}. Give it absolute paths, or isolation='process'."
            )
            os.chdir(self._folder)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the format, and puts the noted place in.

        In an evaluation inside of training Lightning's own is right: the rest of it has yet to come. Of a step that is not over,
        as OnExceptionCheckpoint may find it, it is said.
        """
        checkpoint["format"] = FORMAT
        steps = _steps(trainer, pl_module)
        if (
            trainer.state.fn == "fit"
            and self._steps is not None
            and steps[1] == self._steps[1]
            and steps[0] > self._steps[0]
        ):
            rank_zero_warn(
                f"This checkpoint was written in the middle of a step, {steps[0] - self._steps[0]} of whose optimizer steps are in its "
                "weights. A run that goes on from it does all of them again; one before it repeats the step as it was."
            )
        is_in_evaluation = trainer.state.fn == "fit" and trainer.evaluating
        if not is_in_evaluation and self._is_between_steps(trainer, pl_module):
            checkpoint["loops"]["fit_loop"] = self._place

    def save(self, trainer: Trainer, again: bool = False) -> None:
        """Writes the checkpoint that ``--ckpt_path last`` finds, wherever one is kept.

        Args:
            trainer: In a run that keeps any.
            again: Also where there is one of this step already.
        """
        kept = [callback for callback in _model_checkpoints(trainer) if callback.save_last]
        for callback in kept if not trainer.fast_dev_run else []:  # type: ignore[attr-defined]
            if again or self._has_skipped() or callback._last_global_step_saved != trainer.global_step:
                write_last(trainer, callback)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the last step; where that cannot be done, what else there is to save comes first."""
        try:
            self.save(trainer)
        except CheckpointNotWrittenError as error:
            if trainer.world_size > 1:  # the others wait for the end of the save, not in what comes next
                raise
            self._not_written = error

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends a run whose last checkpoint could not be written.

        Raises:
            CheckpointNotWrittenError: Saying what to do.
        """
        if self._not_written is not None:
            raise self._not_written

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves what is complete, in a run of one rank: others might wait for this one elsewhere."""
        self._keep_from_saving(trainer, pl_module, exception)
        is_handled = isinstance(exception, KeyboardInterrupt | SIGTERMException | CheckpointNotWrittenError)
        if is_handled or trainer.world_size > 1 or trainer.state.fn != "fit":
            return
        if not self._is_between_steps(trainer, pl_module) or not self._can_go_on(trainer, pl_module):
            return
        place = self._watch.place  # of the error, which comes before the save
        try:
            self.save(trainer)
        except Exception as error:  # the error that ends the run is the one to show
            exception.add_note(f"The checkpoint of the last complete step could not be written either: {error}")
        finally:
            self._watch.enter(place)

    def _keep_from_saving(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """``save_on_exception`` would put part of a step in the place of a checkpoint, or ask ranks that are elsewhere.

        Of steps that were skipped it would save nothing.
        """
        is_alone = trainer.world_size == 1
        if trainer.state.fn != "fit" or (is_alone and self._steps in (None, _steps(trainer, module))):
            for callback in _model_checkpoints(trainer) if self._has_skipped() else []:
                callback._last_global_step_saved = NO_STEP
            return
        why = "its weights are of a part of a step" if is_alone else "the other ranks are elsewhere"
        for callback in _model_checkpoints(trainer):
            if callback.save_on_exception:
                callback.save_on_exception = False
                exception.add_note(f"checkpoint.save_on_exception saved nothing: {why}.")

    def _has_skipped(self) -> bool:
        """Whether steps that ended since changed no weights, so that Lightning's count takes them for saved."""
        return self._steps != self._moved

    def _is_between_steps(self, trainer: Trainer, module: LightningModule) -> bool:
        """Whether the weights are those after the step whose place is noted."""
        return self._place is not None and self._steps == _steps(trainer, module)

    def _can_go_on(self, trainer: Trainer, module: LightningModule) -> bool:
        """Whether a step that has begun has changed nothing that a checkpoint holds."""
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        return progress.ready == progress.processed or getattr(module, "can_repeat_step", True)


def write_last(trainer: Trainer, callback: ModelCheckpoint) -> None:
    """Writes ``last.ckpt`` of one of them, as a file, also where it was a link."""
    name = callback.CHECKPOINT_NAME_LAST
    callback.last_model_path = callback.format_checkpoint_name(callback._monitor_candidates(trainer), name)
    if trainer.is_global_zero and os.path.islink(callback.last_model_path):
        os.remove(callback.last_model_path)  # of save_last: link; what it leads to stays
    callback._save_checkpoint(trainer, callback.last_model_path)


def _model_checkpoints(trainer: Trainer) -> list[ModelCheckpoint]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]


def _steps(trainer: Trainer, module: LightningModule) -> tuple[int, int]:
    """Optimizer steps and GRPO steps."""
    return trainer.global_step, getattr(module, "steps_done", 0)


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "one that is gone"
