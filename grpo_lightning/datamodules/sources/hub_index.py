"""Which files of the hub a dataset was read from, so that it is read again where the hub cannot be reached.

The datasets library finds a dataset offline by the Arrow files that it has made of it. JSON and tables of text are read as they
are (see ``files``): the hub's cache has them, and does not say which of them are a split.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import datasets


class HubFiles(NamedTuple):
    """Local copies of the files of a dataset."""

    file_format: str
    splits: dict[str, list[str]]
    """Split -> paths, for the splits that were read."""


def remember(place: Sequence[str | None], found: HubFiles) -> None:
    """Notes what was downloaded, beside what is known of other splits; a cache that cannot be written notes nothing.

    Args:
        place: Name on the hub, subset and folder.
        found: What they are made of.
    """
    known = remembered(place)
    splits = (known.splits if known is not None and known.file_format == found.file_format else {}) | found.splits
    path = _path(place)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps({"file_format": found.file_format, "splits": splits}))
        os.replace(part, path)


def remembered(place: Sequence[str | None]) -> HubFiles | None:
    """What was noted of a dataset, as far as the files are still there; None where nothing is."""
    try:
        noted = json.loads(_path(place).read_text())
        splits: Mapping[str, list[str]] = noted["splits"]
        there = {split: paths for split, paths in splits.items() if all(map(os.path.exists, paths))}
        return HubFiles(noted["file_format"], there) if there else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _path(place: Sequence[str | None]) -> Path:
    name = hashlib.sha256(json.dumps(list(place)).encode()).hexdigest()[:32]
    return Path(datasets.config.HF_DATASETS_CACHE) / "grpo_lightning" / f"{name}.json"
