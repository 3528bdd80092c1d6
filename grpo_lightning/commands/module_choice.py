"""``--model my.GRPO``: a subclass of the module by import path, its settings as usual under ``model.*``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import yaml

from grpo_lightning.algorithm.choice import at_import_path

if TYPE_CHECKING:  # the first check of a command imports nothing heavy
    from lightning.pytorch import LightningModule

OPTION = "--model_class"
WORDS = ("--model", "--model.class_path", OPTION)
"""What the class may be given by; in a config it is the key ``model_class``."""

Module = TypeVar("Module", bound="LightningModule")


def with_one_option(args: Sequence[str]) -> list[str]:
    """The arguments with whatever names a class in the words of ``OPTION``.

    Example:
        >>> with_one_option(["fit", "--model", "my.GRPO", "--model.beta=0.1"])
        ['fit', '--model_class', 'my.GRPO', '--model.beta=0.1']
    """
    found = []
    for n, word in enumerate(args):
        name, is_joined, value = word.partition("=")
        given = value if is_joined else next(iter(args[n + 1 :]), "")
        if name in WORDS and is_import_path(given):
            word = f"{OPTION}={value}" if is_joined else OPTION
        found.append(word)
    return found


def is_import_path(text: str) -> bool:
    """Whether it may name a class, and not a file of settings."""
    return "." in text and all(part.isidentifier() for part in text.split(".")) and not Path(text).exists()


def chosen_path(args: Sequence[str]) -> str | None:
    """The import path in arguments that have gone through ``with_one_option``, or in the last config that names one."""
    chosen = None
    for n, word in enumerate(args):
        name, is_joined, value = word.partition("=")
        given = value if is_joined else next(iter(args[n + 1 :]), "")
        if name == OPTION:
            return given
        if name in ("--config", "-c") and Path(given).is_file():
            content = yaml.safe_load(Path(given).read_text(encoding="utf-8"))
            chosen = (content.get("model_class") if isinstance(content, dict) else None) or chosen
    return chosen


def chosen_class(path: str | None, default: type[Module]) -> type[Module]:
    """The class of an import path.

    Raises:
        ValueError: If there is none, or it is no subclass of the default one.
    """
    if path is None:
        return default
    found = at_import_path(f"{OPTION.strip('-')}={path}", path)
    if not (isinstance(found, type) and issubclass(found, default)):
        raise ValueError(f"{OPTION.strip('-')}={path} is no subclass of {default.__name__}, which this command trains.")
    return found
