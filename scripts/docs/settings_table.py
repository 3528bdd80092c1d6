"""Writes grpo_lightning/commands/settings/table.json from the command line's own parsers and the classes behind it.

python scripts/docs/settings_table.py
"""

from __future__ import annotations

import inspect
import json
import logging
import sys
import types
import warnings
from argparse import SUPPRESS
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

sys.path.insert(0, str(Path(__file__).parents[2]))  # also without an installed package

import torch
from docstring_parser import parse as parse_docstring
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch import loggers as lightning_loggers
from lightning.pytorch.cli import LightningArgumentParser

from grpo_lightning import callbacks, generation
from grpo_lightning.commands.cli import GRPOCLI
from grpo_lightning.commands.settings.table import FILE, LIGHTNING_SECTIONS
from grpo_lightning.commands.stage_cli import CLIS
from grpo_lightning.modules.schedules import TransformersSchedule, WarmupSchedule

REFUSED = [torch.optim.lr_scheduler.ReduceLROnPlateau]
"""Classes of which the full check says why they cannot be used."""
PROGRAMS = {"grpo": GRPOCLI, **CLIS}
MADE_WITH = ("lightning", "torch")
SIMPLE = {int: "int", float: "float", str: "str", bool: "bool", type(None): "null"}


def build() -> dict[str, Any]:
    """The table."""
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    try:
        return {
            "versions": {package: version(package).partition("+")[0] for package in MADE_WITH},
            **{name: program(cli) for name, cli in PROGRAMS.items()},
            "classes": {name: family(members) for name, members in families().items()},
        }
    finally:
        logging.disable(logging.NOTSET)


def program(cli: type[GRPOCLI]) -> dict[str, Any]:
    """Settings of all commands of a program."""
    found: dict[str, Any] = {}

    class ParserOnly(cli):  # type: ignore[misc, valid-type]
        """Stops with the parser."""

        def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
            for subparser in self._subcommand_parsers.values():
                found.update({each.dest: setting(each) for each in subparser._actions if is_setting(each)})
            raise Stop

    for command in cli.subcommands():
        with suppress(Stop):
            ParserOnly(args=[command])
    return found


class Stop(Exception):
    """Ends the making of a command line once its parser is there."""


def is_setting(action: Any) -> bool:
    """Whether a user may give it a value."""
    return type(action).__name__ == "ActionTypeHint" and action.default != SUPPRESS


def setting(action: Any) -> dict[str, Any]:
    """The entry of an option."""
    entry = described(action._typehint, action.default)
    section = action.dest.partition(".")[0]
    text = "" if section in LIGHTNING_SECTIONS or action.help is None else action.help.replace("%%", "%")
    return entry | ({"help": " ".join(text.split())} if text else {}) | ({"required": True} if action.required else {})


def described(hint: Any, default: Any) -> dict[str, Any]:
    """Kinds, choices and default of a type."""
    kinds, choices = kinds_of(hint)
    entry: dict[str, Any] = {"kinds": sorted(kinds)}
    if choices:
        entry["choices"] = choices
    if default is not None and default is not inspect.Parameter.empty:
        with suppress(TypeError):  # an object, which the setting's text explains
            entry["default"] = json.loads(json.dumps(default))
    return entry


def kinds_of(hint: Any) -> tuple[set[str], list[Any]]:
    """What a value may be, and single values beside that."""
    if hint in SIMPLE:
        return {SIMPLE[hint]}, []
    origin = get_origin(hint)
    if hint is torch.Tensor:  # a learning rate may be one, in Python
        return set(), []
    if origin is Literal:
        return set(), list(get_args(hint))
    if origin in (Union, types.UnionType):
        parts = [kinds_of(part) for part in get_args(hint)]
        return set().union(*(kinds for kinds, _ in parts)), [choice for _, choices in parts for choice in choices]
    base = origin or hint
    if isinstance(base, type) and issubclass(base, Path):
        return {"str"}, []
    if isinstance(base, type) and issubclass(base, dict):
        return {"dict"}, []
    if isinstance(base, type) and base is not str and issubclass(list, base) and base is not object:
        held = {kind for part in get_args(hint) for kind in kinds_of(part)[0]}
        return {"list", "object"} if "object" in held else {"list"}, []
    return {"object"}, []


def families() -> dict[str, list[Any]]:
    """Setting -> classes that it may name."""
    own_callbacks = [getattr(callbacks, name) for name in callbacks.__all__]
    theirs = [getattr(lightning_callbacks, name) for name in lightning_callbacks.__all__]
    schedulers = torch.optim.lr_scheduler
    return {
        "model.generator": [generation.TransformersGenerator, generation.VLLMColocate, generation.VLLMServer],
        "model.optimizer": subclasses(vars(torch.optim).values(), torch.optim.Optimizer),
        "model.lr_scheduler": [
            WarmupSchedule,
            TransformersSchedule,
            *(each for each in subclasses(vars(schedulers).values(), schedulers.LRScheduler) if each not in REFUSED),
        ],
        "trainer.callbacks": [*own_callbacks, *subclasses(theirs, lightning_callbacks.Callback)],
        "trainer.logger": [getattr(lightning_loggers, name) for name in lightning_loggers.__all__],
    }


def subclasses(values: Iterable[Any], base: type) -> list[type]:
    """Public classes derived from ``base``."""
    return [v for v in values if isinstance(v, type) and issubclass(v, base) and v is not base and v.__name__[0] != "_"]


def family(members: Iterable[Any]) -> dict[str, Any]:
    """Entries of classes by their short names, in alphabetical order."""
    return {cls.__name__: known_class(cls) for cls in sorted(members, key=lambda each: each.__name__)}


def known_class(cls: Callable[..., Any]) -> dict[str, Any]:
    """The entry of a class; texts of our own classes only."""
    is_own = cls.__module__.startswith("grpo_lightning")
    documentation = parse_docstring(inspect.getdoc(cls) or "")
    texts = {n.strip(): p.description or "" for p in documentation.params for n in p.arg_name.split(",")}
    try:
        hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    except NameError:  # imported for type checkers alone
        hints = {}
    arguments, is_open = {}, False
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            is_open = True
        elif name not in ("params", "optimizer"):
            entry = described(hints.get(name, object), parameter.default)
            if parameter.default is parameter.empty:
                entry["required"] = True
            if is_own and texts.get(name):
                entry["help"] = " ".join(texts[name].split())
            arguments[name] = entry
    known: dict[str, Any] = {"module": cls.__module__, "arguments": arguments}
    if is_own:
        known["help"] = documentation.short_description or ""
    return known | ({"open": True} if is_open else {})


def render() -> str:
    """The file: a line for each setting and each class, so that a change is a readable diff."""
    table = build()
    parts = [f'"versions": {json.dumps(table["versions"])}']
    for name in PROGRAMS:
        parts.append(f'"{name}": {{\n{lines(table[name])}\n}}')
    groups = [f'"{name}": {{\n{lines(members)}\n}}' for name, members in table["classes"].items()]
    parts.append('"classes": {\n' + ",\n".join(groups) + "\n}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def lines(entries: dict[str, Any]) -> str:
    """One line each."""
    return ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items())


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
