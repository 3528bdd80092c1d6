"""Which local files a name means, and in which format they are."""

from __future__ import annotations

import bz2
import glob
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpo_lightning.errors import nearest

FILE_FORMATS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
TEXT_FORMATS = ("json", "csv")
"""Formats that ``text_files`` reads, compressed or not; the others hold types of their own."""
COMPRESSIONS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
"""Endings of compressed text, and what opens it."""

_NO_DATA = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


def file_format(path: str | Path) -> str | None:
    """Which of ``FILE_FORMATS`` a file is, by its name; None where it cannot be read.

    Example:
        >>> file_format("a/rows.jsonl.gz"), file_format("rows.arrow"), file_format("rows.parquet.gz")
        ('json', 'arrow', None)
    """
    suffix, is_compressed = split_ending(path)
    found = FILE_FORMATS.get(suffix)
    return None if is_compressed and found not in TEXT_FORMATS else found


def split_ending(path: str | Path) -> tuple[str, bool]:
    """(lower-case ending without that of a compression, whether there is a compression)."""
    endings = [ending.lower() for ending in Path(path).suffixes[-2:]]
    if endings and endings[-1] in COMPRESSIONS:
        return (endings[-2] if len(endings) > 1 else ""), True
    return (endings[-1] if endings else ""), False


def is_pattern(path: str) -> bool:
    """Whether this names files by a pattern (``shards/*.jsonl``), and is not itself a file."""
    return glob.has_magic(path) and not Path(path).exists()


def matching_files(pattern: str) -> list[str]:
    """The files that a pattern names, sorted; ``**`` goes through folders."""
    return sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())


def did_you_mean_path(path: Path) -> str:
    """The end of an error about a path at which nothing is: a sentence with a space before it, or nothing.

    Named is a file of rows or a folder that is called alike, or a file that has an ending beside the name; of a path through
    folders that are not there, a folder like the first of them.
    """
    missing = path
    while not missing.parent.is_dir():
        missing = missing.parent
    try:
        beside = sorted(each for each in missing.parent.iterdir() if each.is_dir() or file_format(each))
    except OSError:  # a folder that may not be listed
        return ""
    names = [each.name for each in beside if missing == path or each.is_dir()]
    with_ending = next((name for name in names if name.partition(".")[0] == missing.name), None)
    near = with_ending or nearest(missing.name, names)
    return "" if near is None else f" Did you mean {missing.parent / near / path.relative_to(missing)}?"


def check_directory(name: str, path: Path) -> None:
    """Refuses a directory of files in several formats, of which the datasets library would read one.

    Left out is what that library leaves out: hidden files and folders, and its own descriptions. A directory whose
    README.md names its ``data_files`` says itself what is read, and one of ``save_to_disk`` knows it.

    Raises:
        ValueError: Naming a file of each format.
    """
    if not path.is_dir() or any((path / own).is_file() for own in ("state.json", "dataset_dict.json")):
        return
    card = path / "README.md"
    if card.is_file() and "data_files" in card.read_text(encoding="utf-8", errors="replace"):
        return
    found: dict[str, Path] = {}
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        kind = file_format(file)
        is_left_out = any(part.startswith((".", "__")) for part in inside.parts) or file.name in _NO_DATA
        if kind is not None and not is_left_out and file.is_file():
            found.setdefault(kind, inside)
    if len(found) > 1:
        raise ValueError(
            f"Dataset {name!r}: {path} has files of several formats ({' and '.join(map(str, found.values()))}), of which one "
            f"would be read. Name those that are meant, as in {path}/*{next(iter(found.values())).suffix}, or give each "
            "format a directory."
        )
