"""Whether a checkpoint is what was written: whole, unchanged, and of this program."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from grpo_lightning.distributed.checkpoint_values import why_unreadable
from grpo_lightning.distributed.folder_checksums import folder_fault
from grpo_lightning.errors import ExplainedError

FORMAT = 1
"""Of checkpoints; raised where older programs could no longer read what is written."""

STAGE = "stage"
"""In a checkpoint: the command that trained it."""

DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OSError,
)
"""What reading a changed archive raises."""


class CheckpointNotReadableError(ExplainedError, ValueError):
    """Says what is wrong with a checkpoint, and which one beside it is intact."""


def check_intact(path: Path) -> None:
    """Reads every byte of a file written by ``torch.save``, whose archive has a CRC-32 for each record.

    Raises:
        CheckpointNotReadableError: If it is empty, cut off, changed or no checkpoint at all.
    """
    fault = fault_of(path)
    if fault is not None:
        raise CheckpointNotReadableError(f"The checkpoint {path} cannot be used: {fault}. {intact_beside(path)}")


def fault_of(path: Path) -> str | None:
    """What is wrong with a file, or with a directory; None where all of it is as it was written."""
    if path.is_dir():
        return folder_fault(path)
    if not path.exists():
        return "there is no such file"
    if path.stat().st_size == 0:
        return "the file is empty"
    if not zipfile.is_zipfile(path):
        return "the file is cut off, or not a checkpoint"
    try:
        with zipfile.ZipFile(path) as archive:
            changed = archive.testzip()
    except DAMAGE as error:
        return f"its contents have changed since they were written ({error})"
    return None if changed is None else f"its contents have changed since they were written (checksum of {changed})"


def intact_beside(path: Path) -> str:
    """The newest other checkpoint of this program in the folder that is of the same kind and intact, as advice."""
    beside = [other for other in path.parent.glob("*.ckpt") if other.resolve() != path.resolve()]
    others = [other for other in beside if other.is_dir() == path.is_dir()]
    for other in sorted(others, key=lambda other: other.stat().st_mtime, reverse=True):
        if fault_of(other) is None and _may_be_own(other):
            return f"The newest intact one beside it is '{other}': go on with --ckpt_path '{other}'."
    return "There is no intact one beside it."


def _may_be_own(path: Path) -> bool:
    """Whether nothing says that an intact one is of another program; one that names classes of the user's is not read for it."""
    if path.is_dir():
        return any(path.glob(".metadata"))
    try:
        check_own(path, torch.load(path, map_location="meta", mmap=True, weights_only=True))
    except CheckpointNotReadableError:
        return False
    except Exception:  # what weights_only does not make, and what else a foreign file raises
        return True
    return True


def read_checkpoint(path: Path, **loading: Any) -> dict[str, Any]:
    """The contents of a checkpoint file that has been found intact.

    Args:
        path: The file.
        **loading: Arguments of ``torch.load``.

    Raises:
        CheckpointNotReadableError: If it is damaged, of another program, or of a later version of this one.
    """
    check_intact(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", **loading)
    except Exception as error:  # unpickling a foreign file raises anything
        raise CheckpointNotReadableError(f"The checkpoint {path} cannot be read: {why_unreadable(error)}.") from error
    check_own(path, checkpoint)
    return checkpoint


def check_own(path: Path, checkpoint: Any) -> None:
    """Raises CheckpointNotReadableError where another program, or a later version, wrote it."""
    if not isinstance(checkpoint, dict) or not {"state_dict", "trained_names"} <= checkpoint.keys():
        raise CheckpointNotReadableError(
            f"{path} is not a checkpoint of grpo_lightning. Weights of other programs are what model.model_name_or_path "
            "starts from, in Hugging Face format."
        )
    number = checkpoint.get("format", FORMAT)
    if number != FORMAT:
        raise CheckpointNotReadableError(
            f"{path} was written by another version of grpo_lightning (format {number}; this one reads {FORMAT}). Go on "
            "with that version."
        )


def check_stage(checkpoint: Mapping[str, Any], stage: str) -> None:
    """Refuses the checkpoint of another stage, before anything is changed: its place means nothing here.

    Args:
        checkpoint: As loaded. One without the entry is of an earlier version, and taken as it is.
        stage: The command that would go on from it.

    Raises:
        CheckpointNotReadableError: Saying which stage wrote it, and how its weights are taken over.

    Example:
        >>> check_stage({"stage": "sft"}, "sft")
        >>> check_stage({"stage": "dpo"}, "sft")
        Traceback (most recent call last):
            ...
        grpo_lightning.distributed.checkpoint_check.CheckpointNotReadableError: The checkpoint was written by `dpo`...
    """
    written_by = checkpoint.get(STAGE, stage)
    if written_by == stage:
        return
    raise CheckpointNotReadableError(
        f"The checkpoint was written by `{written_by}`, and this is `{stage}`: its optimizer, its schedule and its place in the "
        f"data are those of another stage. Go on with `{written_by}`, or start `{stage}` from the model that it has exported, "
        "without a checkpoint: model.model_name_or_path=RUN/hf/last. `python -m grpo_lightning export CHECKPOINT DIRECTORY` "
        "writes one from any checkpoint."
    )


def check_parts(checkpoint: Mapping[str, Any], names: Iterable[str], restores_optimizer: bool = False) -> None:
    """Refuses a checkpoint that lacks what a run goes on from, before anything is changed.

    Args:
        checkpoint: As loaded.
        names: Of its entries.
        restores_optimizer: Whether it holds the optimizer's state, which sharded ones keep elsewhere.

    Raises:
        CheckpointNotReadableError: Naming what is missing.
    """
    missing = [name for name in names if name not in checkpoint]
    if restores_optimizer and not checkpoint.get("optimizer_states"):
        missing.append("optimizer_states")
    if missing:
        raise CheckpointNotReadableError(
            f"The checkpoint is incomplete: it lacks {', '.join(missing)}. One that checkpoint.save_weights_only=true has "
            "written holds weights alone: nothing can go on from it, but `python -m grpo_lightning export` makes a model of it, "
            "which a new run starts from (model.model_name_or_path)."
        )


def check_complete(checkpoint: Mapping[str, Any], shapes: Mapping[str, torch.Size]) -> None:
    """Refuses a checkpoint in which something is missing, before anything is changed.

    Args:
        checkpoint: As loaded. Sharded ones hold their tensors elsewhere.
        shapes: Of the trained weights, by name.

    Raises:
        CheckpointNotReadableError: Naming a weight, or saying how many states of the optimizer there are.
    """
    weights = checkpoint.get("state_dict", {})
    for name, shape in shapes.items() if weights else ():
        if name not in weights:
            raise CheckpointNotReadableError(f"The checkpoint is incomplete: it lacks the weight {name}.")
        if weights[name].shape != shape:
            raise CheckpointNotReadableError(
                f"The checkpoint does not fit the model: {name} has shape {tuple(weights[name].shape)} and not "
                f"{tuple(shape)}."
            )
    for state in checkpoint.get("optimizer_states", ()):
        known, wanted = state.get("state", {}), [i for group in state.get("param_groups", ()) for i in group["params"]]
        if known and not set(wanted) <= known.keys():
            raise CheckpointNotReadableError(
                f"The checkpoint is incomplete: its optimizer has states of {len(known)} weights and trains {len(wanted)}."
            )
