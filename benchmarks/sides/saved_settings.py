"""What both sides of a comparison are given, as a file between processes. Standard library only."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from sides.whole_file import write_whole


@dataclass(frozen=True)
class SavedSettings:
    """Fields of a subclass as JSON."""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """From the file that ``save`` wrote."""
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))

    def save(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        write_whole(path, json.dumps(asdict(self), indent=1) + "\n")
