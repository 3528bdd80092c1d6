"""Checkpoints appear whole or not at all, also when the run is killed or the disk fills up while one is written."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import CheckpointIO
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO

from grpo_lightning.distributed.checkpoint_check import CheckpointNotReadableError, read_checkpoint
from grpo_lightning.distributed.checkpoint_values import as_written, with_python_scalars
from grpo_lightning.distributed.moved_folder import part_of
from grpo_lightning.errors import ExplainedError, to_write


class CheckpointNotWrittenError(ExplainedError, OSError):
    """The disk is full, or read-only; the message says which checkpoint there is."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, then renames.

    Lightning's own way writes to the system's temporary directory and moves the file: a copy where that is another
    file system, so that a kill or a full disk leaves half a file in place of the last good checkpoint.
    """

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Reads a file, its checksums first.

        Raises:
            CheckpointNotReadableError: If it is not what was written, not ours, or a directory, as sharded
                strategies write them.
        """
        if Path(path).is_dir():
            raise CheckpointNotReadableError(
                f"--ckpt_path {path} is a directory, as trainer.strategy=fsdp2 writes them. Go on with "
                "trainer.strategy=fsdp2: any number of devices will do, one as well."
            )
        if "://" in str(path):
            return super().load_checkpoint(path, *args, **kwargs)
        weights_only = kwargs.get("weights_only")
        return read_checkpoint(Path(path), weights_only=True if weights_only is None else weights_only)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Saves to a local path; remote ones (``s3://...``) go Lightning's way.

        Raises:
            CheckpointNotWrittenError: If it cannot be written; what was at ``path`` before is still there.
        """
        checkpoint = as_written(checkpoint)
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        part = part_of(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as either
            with suppress(OSError):  # a read-only disk refuses that as well
                part.unlink(missing_ok=True)
            raise not_written(target, str(error)) from error


class ReadableCheckpointIO(_WrappingCheckpointIO):
    """Gives a plugin of the user's what is read again, however it writes.

    Args:
        plugin: Writes and reads.
    """

    def __init__(self, plugin: CheckpointIO) -> None:
        super().__init__(plugin)
        self.plugin = plugin

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Without numpy's scalars; arrays in the form of ours where ``torch.save`` is what writes them."""
        in_form = as_written if isinstance(_innermost(self.plugin), TorchCheckpointIO) else with_python_scalars
        self.plugin.save_checkpoint(in_form(checkpoint), path, storage_options=storage_options)

    def teardown(self) -> None:
        """Waits for what a plugin such as ``AsyncCheckpointIO`` still writes, and raises what it met."""
        self.plugin.teardown()


def whole_files(plugin: CheckpointIO) -> CheckpointIO:
    """What writes a Trainer's checkpoint files: ours in the place of Lightning's default, also inside what wraps it."""
    if type(plugin) is TorchCheckpointIO:
        return AtomicCheckpointIO()
    if isinstance(plugin, AtomicCheckpointIO | ReadableCheckpointIO):
        return plugin
    wrapper: Any = plugin
    while isinstance(wrapper, _WrappingCheckpointIO):
        if type(wrapper._checkpoint_io) is TorchCheckpointIO:
            wrapper._checkpoint_io = AtomicCheckpointIO()
        wrapper = wrapper._checkpoint_io
    return ReadableCheckpointIO(plugin)


def not_written(target: Path, reason: str) -> CheckpointNotWrittenError:
    """The error of a checkpoint that could not be written, with what to do."""
    return CheckpointNotWrittenError(
        f"The checkpoint {target} could not be written ({reason}). {_what_is_left(target, reason)}"
    )


def _innermost(plugin: Any) -> Any:
    while isinstance(plugin, _WrappingCheckpointIO):
        plugin = plugin.checkpoint_io
    return plugin


def _what_is_left(target: Path, reason: str) -> str:
    """What to do after the checkpoint at ``target`` could not be written."""
    free = f"{to_write(reason, 'Free disk space, or make the folder writable')},"
    last = target.with_name("last.ckpt")
    if last.exists():
        return f"last.ckpt, of an earlier step, is untouched. {free} then go on with --ckpt_path last."
    try:
        other = newest(target.parent.glob("*.ckpt"))
    except OSError:  # the folder cannot be opened either
        return f"{free} then go on with --ckpt_path last, where there is an earlier one."
    if other is not None:
        return f"{free} then go on with --ckpt_path '{other}'."
    return f"There is no earlier one. {free} and start again."


def newest(paths: Iterable[Path]) -> Path | None:
    """The one that was written last; None where there is none."""
    return max(paths, key=lambda path: path.stat().st_mtime, default=None)
