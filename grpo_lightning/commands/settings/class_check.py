"""A class that a config names, with its arguments, against what the table knows of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from grpo_lightning.class_entry import KEYS
from grpo_lightning.commands.settings.table import KnownClass, SettingsTable
from grpo_lightning.commands.settings.values import fits, wanted
from grpo_lightning.commands.settings.yaml_file import UNREAD, Entry
from grpo_lightning.migration.compose.optimizer import OPTIMIZERS, SCHEDULES

SPEC_KEYS = KEYS | {"dict_kwargs"}
WITHDRAWN = {
    "NeptuneLogger": "the service has ended. Use another logger, such as grpo_lightning.trackers.TrackioLogger"
}
"""Classes that only raise, whatever their arguments."""
CHOSEN = ("model.generator", "trainer.logger")
"""Settings whose short names are those of the table; elsewhere a short name may be a class that someone has imported."""


def class_mistakes(entry: Entry, table: SettingsTable, is_whole: bool) -> Iterator[str]:
    """What is wrong with the classes of an entry; classes that the table lacks may be the user's, and pass.

    Args:
        entry: Of a setting that names a class, or a list of them.
        table: Of the program.
        is_whole: Whether nothing else gives arguments to these classes.
    """
    for spec in entry.value if isinstance(entry.value, list) else [entry.value]:
        path = spec.get("class_path") if isinstance(spec, dict) else spec
        if not isinstance(path, str):
            if isinstance(spec, dict) and spec and is_whole and _has_no_class(entry.name, table):
                names = ", ".join(sorted(table.classes[entry.name]))
                yield (
                    f"{entry.name} has {', '.join(map(str, spec))} and names no class ({entry.where}). Give it class_path, one of "
                    f"{names}, or a path of your own, and its arguments under init_args."
                )
            continue
        odd = set(spec) - SPEC_KEYS if isinstance(spec, dict) else set()
        if odd:
            keys = ", ".join(sorted(map(str, odd)))
            yield f"{entry.name} has {keys} beside class_path ({entry.where}). Arguments of a class stand under init_args."
            continue
        family = table.classes[entry.name]
        known, name = _find(path, family), path.rpartition(".")[2]
        if known is None and name in WITHDRAWN:
            yield f"{entry.name}={name} cannot be used ({entry.where}): {WITHDRAWN[name]}."
        elif known is None and (advice := _of_transformers(entry.name, path)):
            yield f"{entry.name}={path} is a name of transformers and no class ({entry.where}). {advice}"
        elif known is None:
            by_letters = {each.lower(): each for each in family}
            near = [] if "." in path else get_close_matches(path.lower(), by_letters, 1, cutoff=0.75)
            if near:
                yield f"{entry.name}={path} is no known class ({entry.where}). Did you mean {by_letters[near[0]]}?"
            elif "." not in path and entry.name in CHOSEN:
                names = ", ".join(sorted(family))
                yield f"{entry.name}={path} is no known class ({entry.where}). Choose one of {names}, or a class path."
        elif table.is_current or known[1].module.startswith("grpo_lightning"):
            given = (spec.get("init_args") or {}) if isinstance(spec, dict) else {}
            if isinstance(given, dict):
                yield from _argument_mistakes(entry, *known, given, is_whole)


def _has_no_class(setting: str, table: SettingsTable) -> bool:
    return setting in table.settings and table.settings[setting].default is None


def _of_transformers(setting: str, name: str) -> str | None:
    """What to write for a name that transformers and TRL have for a schedule (lr_scheduler_type) or an optimizer (optim)."""
    if setting == "model.lr_scheduler" and name in SCHEDULES:
        return (
            f"Write class_path: TransformersSchedule with init_args: {{name: {name}}}; as options --{setting} "
            f"TransformersSchedule --{setting}.name {name}."
        )
    if setting == "model.optimizer" and name in OPTIMIZERS:
        return f"Write {OPTIMIZERS[name]}."
    return None


def _argument_mistakes(
    entry: Entry, name: str, known: KnownClass, given: dict[str, Any], is_whole: bool
) -> Iterator[str]:
    for key, value in given.items():
        argument = known.arguments.get(key)
        if argument is None and not known.is_open:
            near = get_close_matches(str(key), known.arguments, 1, cutoff=0.6)
            meant = f"Did you mean {near[0]}?" if near else f"It has: {', '.join(known.arguments) or 'none'}."
            yield f"{entry.name}: {name} has no argument {key} ({entry.where}). {meant}"
        elif argument is not None and not fits(value, argument):
            yield f"{entry.name}: {name} cannot have {key}={value!r} ({entry.where}): it takes {wanted(argument)}."
    missing = [key for key, argument in known.arguments.items() if argument.is_required and key not in given]
    if missing and is_whole and not (given.keys() - known.arguments.keys()):
        yield f"{entry.name}: {name} needs {' and '.join(missing)} ({entry.where}). Give it under init_args."


def argument_mistakes(entry: Entry, family: str, entries: Sequence[Entry], table: SettingsTable) -> Iterator[str]:
    """What is wrong with ``--model.generator.host X``, where the class is one that the table has.

    Args:
        entry: Of the option.
        family: The setting that names the class: ``model.generator``.
        entries: All of the command, of which the last one that names the class counts.
        table: Of the program.
    """
    key = entry.name.removeprefix(f"{family}.").removeprefix("init_args.")
    naming = [each.value for each in entries if each.name in (family, f"{family}.class_path")]
    paths = [path for value in naming if (path := _path_of(value))]
    path = paths[-1] if paths else _path_of(table.settings[family].default)
    if "." in key or key in SPEC_KEYS or path is None or entry.value is UNREAD:
        return
    known = _find(path, table.classes[family])
    if known is not None and (table.is_current or known[1].module.startswith("grpo_lightning")):
        yield from _argument_mistakes(entry, *known, {key: entry.value}, is_whole=False)


def _path_of(value: Any) -> str | None:
    path = value.get("class_path") if isinstance(value, dict) else value
    return path if isinstance(path, str) else None


def _find(path: str, family: dict[str, KnownClass]) -> tuple[str, KnownClass] | None:
    return next(((name, each) for name, each in family.items() if each.is_called(path, name)), None)
