"""Checksums of a checkpoint that is a directory: every rank notes and checks a share of its files."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

PREFIX = "checksums-"
"""Of one file per rank that wrote, with the size and CRC-32 of its share."""
CHUNK_BYTES = 2**24


def note_checksums(folder: Path, rank: int = 0, ranks: int = 1) -> None:
    """Writes down what this rank's share of the files is; all of them have been written.

    Args:
        folder: The checkpoint, seen by all ranks.
        rank, ranks: Which share, of how many.
    """
    noted = {name: [(folder / name).stat().st_size, _crc(folder / name)] for name in _files(folder)[rank::ranks]}
    (folder / f"{PREFIX}{rank}.json").write_text(json.dumps({"ranks": ranks, "files": noted}))


def folder_fault(folder: Path, rank: int = 0, ranks: int = 1) -> str | None:
    """What is wrong with this rank's share of a checkpoint; None where it is as written, or as older versions wrote it.

    Args:
        folder: The checkpoint.
        rank, ranks: Which share, of how many: not those that wrote it.
    """
    notes = [_note(path) for path in sorted(folder.glob(f"{PREFIX}*.json"))]
    if not notes:
        return None
    if any(note is None for note in notes) or len(notes) != notes[0]["ranks"]:  # type: ignore[index]
        return "its checksums are not all there"
    noted = {name: about for note in notes if note is not None for name, about in note["files"].items()}
    for name in sorted(noted)[rank::ranks]:
        path, (size, crc) = folder / name, noted[name]
        if not path.is_file():
            return f"it lacks {name}"
        if path.stat().st_size != size or _crc(path) != crc:
            return f"its contents have changed since they were written (checksum of {name})"
    return None


def has_checksums(folder: Path) -> bool:
    """Whether its files were noted, after all of them had been written."""
    return any(folder.glob(f"{PREFIX}*.json"))


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(PREFIX))


def _note(path: Path) -> dict[str, Any] | None:
    try:
        note = json.loads(path.read_text())
        return note if note["ranks"] >= 1 and isinstance(note["files"], dict) else None
    except (ValueError, KeyError, TypeError, OSError):
        return None


def _crc(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
    return value
