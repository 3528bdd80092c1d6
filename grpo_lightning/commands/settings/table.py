"""The table of settings: names, types, defaults and texts of the real signatures, as of the versions that it was made with."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("table.json")
"""Made by scripts/docs/settings_table.py; tests/commands/test_settings_table.py compares it with the signatures."""

LIGHTNING_SECTIONS = ("trainer", "checkpoint")
"""Sections whose settings are those of another package, and may change with its version."""


@dataclass(frozen=True)
class Setting:
    """One setting, or one argument of a class.

    Args:
        kinds: What a value may be: int, float, str, bool, null, list, dict, or object for what only its own class knows.
        choices: Values that may stand there beside those of ``kinds``.
        default: As JSON has it; None also where there is none.
        text: Its meaning.
        is_required: Whether a run needs it.
    """

    kinds: tuple[str, ...]
    choices: tuple[Any, ...] = ()
    default: Any = None
    text: str = ""
    is_required: bool = False

    @classmethod
    def read(cls, entry: dict[str, Any]) -> Setting:
        """From its entry in the file."""
        choices, kinds = tuple(entry.get("choices", ())), tuple(entry["kinds"])
        return cls(kinds, choices, entry.get("default"), entry.get("help", ""), entry.get("required", False))


@dataclass(frozen=True)
class KnownClass:
    """A class that a config may name.

    Args:
        module: Where it is imported from.
        arguments: By name.
        is_open: True where it takes others too.
        text: What it is.
    """

    module: str
    arguments: dict[str, Setting]
    is_open: bool = False
    text: str = ""

    def is_called(self, path: str, name: str) -> bool:
        """Whether ``path`` in a config means this class of the short name ``name``."""
        package = self.module.partition(".")[0]
        return path == name or (path.startswith(f"{package}.") and path.endswith(f".{name}"))


@dataclass(frozen=True)
class SettingsTable:
    """All settings of one program.

    Args:
        settings: By dotted name.
        classes: Setting that names a class -> short name -> the class.
        is_current: Whether the packages are those that the table was made with. Where not, what Lightning and torch know
            is for them to say.
    """

    settings: dict[str, Setting]
    classes: dict[str, dict[str, KnownClass]] = field(default_factory=dict)
    is_current: bool = True

    @property
    def sections(self) -> set[str]:
        """Names above settings: ``model``, ``model.dynamic_sampling``."""
        return {name[:dot] for name in self.settings for dot in range(len(name)) if name[dot] == "."}

    def knows_all(self, name: str) -> bool:
        """Whether what the table lacks in the section of ``name`` does not exist."""
        return self.is_current or name.partition(".")[0] not in LIGHTNING_SECTIONS


@cache
def load_table(program: str = "grpo") -> SettingsTable:
    """The table of ``grpo``, or of a stage by its command, such as ``sft``."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    classes = {
        setting: {
            name: KnownClass(
                entry["module"],
                {key: Setting.read(argument) for key, argument in entry["arguments"].items()},
                entry.get("open", False),
                entry.get("help", ""),
            )
            for name, entry in family.items()
        }
        for setting, family in content["classes"].items()
    }
    is_current = all(_installed(package) == made_with for package, made_with in content["versions"].items())
    return SettingsTable({k: Setting.read(v) for k, v in content[program].items()}, classes, is_current)


def _installed(package: str) -> str | None:
    """Version without a build's suffix; None where it is not installed."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return None
