"""What is in a checkpoint that is a directory, read without running code that it names: torch's own reader unpickles anything."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, ClassVar

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, load
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem
from torch.serialization import _get_layout

from grpo_lightning.distributed.checkpoint_check import CheckpointNotReadableError
from grpo_lightning.distributed.checkpoint_values import why_unreadable

CONTENTS = ".metadata"
"""Which tensors and values a checkpoint has, and in which of its files each lies."""

DATA = (
    *(Metadata, MetadataIndex, StorageMeta, TensorStorageMetadata, BytesStorageMetadata, ChunkStorageMetadata),
    *(TensorProperties, _StorageInfo),
)
"""Dataclasses that a list of contents is made of: what it gives their attributes is of the one object."""

PATHS = {"PosixPath": PurePosixPath, "WindowsPath": PureWindowsPath}
"""Paths without a disk, which every system makes."""

KNOWN = {
    **{(kind.__module__, kind.__name__): kind for kind in DATA},
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"): _MEM_FORMAT_ENCODING,
    ("torch.serialization", "_get_layout"): _get_layout,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("collections", "OrderedDict"): OrderedDict,
    **{("pathlib", name): path for name, path in PATHS.items()},
    **{("pathlib._local", name): path for name, path in PATHS.items()},  # as Python 3.13 calls it
}
"""All that a list of contents names, beside torch's dtypes."""


class _ContentsUnpickler(pickle._Unpickler):
    """Makes a list of contents, and nothing else. In Python, as the one in C cannot refuse what changes classes."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuses what could act."""
        dtype = getattr(torch, name, None) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        if (module, name) not in KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a checkpoint")
        return KNOWN[module, name]

    def load_build(self) -> None:
        """Sets attributes of new objects, never of a class or a function, which the whole process shares."""
        this: Any = self
        holder = this.stack[-2]
        if not isinstance(holder, DATA):
            raise pickle.UnpicklingError(f"it changes {holder!r}, which is no part of a checkpoint")
        pickle._Unpickler.dispatch[pickle.BUILD[0]](this)

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}


def contents_fault(folder: Path) -> str | None:
    """Why the list of contents cannot be read; None where it can be."""
    try:
        _contents(folder)
    except Exception as error:  # unpickling a foreign file raises anything
        return f"{CONTENTS} is not what was written ({' '.join(str(error).split())[:200]})"
    return None


def read_into(state: dict[str, Any], folder: Path, weights_only: bool | None = None) -> None:
    """Puts saved tensors and values in the place of those in ``state``; on all ranks together.

    Args:
        state: As the model and its optimizer have it.
        folder: The checkpoint.
        weights_only: False to let values beside the tensors name code, as only its user can ask for.

    Raises:
        CheckpointNotReadableError: If something is not there, does not fit, or names code.
    """
    try:
        load(state, storage_reader=_FolderReader(folder), planner=_ValuePlanner(weights_only is not False))
    except CheckpointException as error:  # the same on every rank
        reason, _ = next(iter(error.failures.values()))
        raise CheckpointNotReadableError(
            f"The checkpoint {folder} cannot be used: {why_unreadable(reason)}."
        ) from error


def read_rest(path: Path, weights_only: bool | None = None) -> dict[str, Any]:
    """What is neither weights nor optimizer states.

    Args:
        path: Of its file.
        weights_only: False to let it name code, as only its user can ask for.

    Raises:
        CheckpointNotReadableError: If it names code, or is something else.
    """
    try:
        rest: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=weights_only is not False)
    except Exception as error:  # unpickling a foreign file raises anything
        raise CheckpointNotReadableError(f"{path} cannot be read: {why_unreadable(error)}.") from error
    return rest


def _contents(folder: Path) -> Metadata:
    with (folder / CONTENTS).open("rb") as file:
        contents = _ContentsUnpickler(file).load()
    if not isinstance(contents, Metadata):
        raise pickle.UnpicklingError(f"it holds a {type(contents).__name__}")
    return contents


class _FolderReader(FileSystemReader):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The list of contents, of data alone."""
        contents = _contents(self._folder)
        contents.storage_meta = StorageMeta(load_id=self.load_id)
        return contents


class _ValuePlanner(DefaultLoadPlanner):
    def __init__(self, weights_only: bool) -> None:
        super().__init__()
        self._weights_only = weights_only

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """A value beside the tensors, such as a learning rate, of plain data alone."""
        loaded = torch.load(value, map_location="cpu", weights_only=self._weights_only)
        set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], loaded)
