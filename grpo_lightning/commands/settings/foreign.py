"""Settings of a run's config that came from somebody else: nothing that they name is imported."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.metadata import packages_distributions
from typing import Any

OWN = ("grpo_lightning.", "peft.")
"""Packages whose classes a config may name."""


def refuse_foreign_classes(settings: Mapping[str, Any], names: Collection[str]) -> None:
    """Refuses a ``class_path`` of another package: a run's directory may come from somebody else, and importing runs its module.

    Args:
        settings: Of the model.
        names: Of those that are read.

    Raises:
        ValueError: Naming the class.
    """
    waiting = [value for name, value in settings.items() if name in names]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            path = value.get("class_path")
            if isinstance(path, str) and "." in path and not path.startswith(OWN):
                raise _refusal(f"the class {path}")
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


@contextmanager
def importing_nothing_foreign() -> Iterator[None]:
    """Around what turns settings into objects: a class may be named as text too, at any depth, which is imported to be looked at.

    Raises:
        ValueError: In place of any error, where a module was asked for that belongs to no installed package.
    """
    refusal = _ImportRefusal()
    sys.meta_path.insert(0, refusal)
    try:
        yield
    except Exception as error:
        if refusal.asked_for is not None:
            raise _refusal(f"something of the module {refusal.asked_for}") from error
        raise
    finally:
        sys.meta_path.remove(refusal)


class _ImportRefusal(MetaPathFinder):
    def __init__(self) -> None:
        self._known = {name.partition(".")[0] for name in sys.modules} | sys.stdlib_module_names
        self.asked_for: str | None = None

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        """Leaves modules of installed packages to others."""
        name = fullname.partition(".")[0]
        if name not in self._known and name not in packages_distributions():
            self.asked_for = fullname
            raise ImportError(f"{fullname} is not imported", name=fullname)


def _refusal(what: str) -> ValueError:
    return ValueError(
        f"the run's config names {what} for its model, and only fit imports what a config names. "
        "Write the model with fit's own export, or remove the setting."
    )
