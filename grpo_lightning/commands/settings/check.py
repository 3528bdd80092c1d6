"""A first check of a command: names and types of its config and its options, before anything heavy is imported."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from grpo_lightning.commands.module_choice import OPTION, chosen_path, with_one_option
from grpo_lightning.commands.settings.class_check import argument_mistakes, class_mistakes
from grpo_lightning.commands.settings.own_paths import lost_paths
from grpo_lightning.commands.settings.ranges import out_of_range
from grpo_lightning.commands.settings.table import Setting, SettingsTable
from grpo_lightning.commands.settings.values import fits, wanted
from grpo_lightning.commands.settings.yaml_file import COMMAND_LINE, UNREAD, ConfigError, Entry, read_entries
from grpo_lightning.settings.names import hint

OWN_OPTIONS = ("config", "print_config", "help", OPTION.removeprefix("--"))
"""Of the parser itself."""
OFF = {
    "completions": "; completions.every_n_steps=0 writes none",
    "samples": "; samples.every_n_steps=0 shows none",
    "export": ", since every run exports what it has trained",
}
"""For those who meant to switch something off: what a section's error ends with."""

ONE_CLASS = {
    "model.distillation": "Write model.distillation: {teacher: DIRECTORY}; as an option --model.distillation.teacher DIRECTORY.",
    "data.curriculum": "Write data.curriculum: {hard_share: 0.1}; as an option --data.curriculum.hard_share 0.1.",
    "model.peft_config": "Write class_path: peft.LoraConfig with init_args: {use_dora: true}, or another of peft's configurations.",
}
"""Settings that hold the settings of a class, and what to write where a value stands for them."""


def mistakes(arguments: Sequence[str], table: SettingsTable) -> list[str]:
    """What is wrong with the arguments of a command and the configs that they name, one line each.

    What the table cannot know, such as settings of a user's own class, passes: the full check follows.

    Args:
        arguments: After the command's name.
        table: Of the program.
    """
    words = with_one_option(arguments)
    try:
        entries = [entry for config in config_files(words) for entry in read_entries(config)] + list(
            options_given(words)
        )
    except ConfigError as error:
        return [str(error)]
    has_own_module = chosen_path(words) is not None
    if has_own_module:
        entries = [entry for entry in entries if not entry.name.startswith("model.")]
    found: list[str] = []
    refused: list[str] = []
    for entry in entries:
        if not any(entry.name.startswith(f"{name}.") for name in refused):
            texts = list(_about(entry, entries, table)) or list(lost_paths(entry))
            refused += [entry.name] * bool(texts)
            found += texts
    return found or _missing(entries, table, has_own_module) or out_of_range(entries)


def config_files(words: Sequence[str]) -> Iterator[str]:
    """What the arguments name by ``--config``.

    Raises:
        ConfigError: If the option is the last word.
    """
    for n, word in enumerate(words):
        name, is_joined, value = word.partition("=")
        if name in ("--config", "-c"):
            if not is_joined and n + 1 == len(words):
                raise ConfigError(f"{name} stands without a file. Name the run's YAML file after it.")
            yield value if is_joined else words[n + 1]


def options_given(words: Sequence[str]) -> Iterator[Entry]:
    """``--model.beta 0.1`` and ``--model.beta=0.1`` as entries.

    Raises:
        ConfigError: For an option without a value, and a value without an option.
    """
    waiting = list(words)
    while waiting:
        option, is_joined, text = waiting.pop(0).partition("=")
        name = option[2:].removesuffix("+")
        if option == "--print_config":
            continue
        if option != "-c" and not option.startswith("--"):
            raise ConfigError(
                f"{option} is no option. Every setting is given as --NAME VALUE, as in --model.beta 0.04."
            )
        if not is_joined:
            if not waiting or waiting[0].startswith("--"):
                raise ConfigError(f"{option} stands without a value. Give one after it: {option} VALUE.")
            text = waiting.pop(0)
        if option != "-c" and name not in OWN_OPTIONS and not name.endswith(".help"):
            yield Entry(name, UNREAD if option.endswith("+") else _parsed(text), COMMAND_LINE)


def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _about(entry: Entry, entries: Sequence[Entry], table: SettingsTable) -> Iterator[str]:
    """What is wrong with one entry."""
    setting = table.settings.get(entry.name)
    if setting is not None and entry.value is not UNREAD:
        if not fits(entry.value, setting, is_typed=_typed(entry)):
            yield (
                f"{entry.name}={entry.value!r} cannot be used ({entry.where}): it takes {wanted(setting)}."
                f"{_example(setting)}"
            )
        elif entry.value is None and setting.is_required:
            yield f"{entry.name} is null ({entry.where}), and a run needs it. {_first_sentence(setting)}"
        elif entry.name in ONE_CLASS and _is_no_settings(entry.value):
            yield f"{entry.name}={entry.value} cannot be used ({entry.where}): it holds settings. {ONE_CLASS[entry.name]}"
        elif entry.name in table.classes:
            below = [each for each in entries if each is not entry and each.name.startswith(entry.name)]
            inside = [each for each in below if each.where.partition(",")[0] == entry.where.partition(",")[0]]
            in_own_file = any(
                isinstance(each.value, str) and each.name == entry.name.partition(".")[0] for each in entries
            )
            is_whole = len(inside) == len(below) if entry.where != COMMAND_LINE else not below and not in_own_file
            yield from class_mistakes(entry, table, is_whole)
    elif setting is None and entry.name in table.sections:
        is_file = isinstance(entry.value, str) and Path(entry.value).is_file()
        if not isinstance(entry.value, dict) and not is_file and entry.value is not UNREAD:
            first = next(name for name in table.settings if name.startswith(f"{entry.name}."))
            shown = "null" if entry.value is None else repr(entry.value)
            yield (
                f"{entry.name}={shown} cannot be used ({entry.where}): it holds settings, such as {first}. Give some of them, "
                f"or leave the section out{OFF.get(entry.name, ' for its defaults')}."
            )
    elif setting is None and (family := _family(entry, table)) is not None:
        yield from argument_mistakes(entry, family, entries, table)
    elif (
        setting is None
        and entry.name not in OWN_OPTIONS
        and table.knows_all(entry.name)
        and not _is_inside(entry, table)
    ):
        names = [*table.settings, *table.sections]
        yield f"{entry.name} is no setting ({entry.where}). {hint(entry.name, names)}".rstrip()


def _is_no_settings(value: Any) -> bool:
    """A number, a switch or a word: no mapping, null, file of settings, or import path or name of a class."""
    if not isinstance(value, str):
        return isinstance(value, bool | int | float | list)
    is_class = re.fullmatch(r"[A-Z]\w*|[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", value) is not None
    is_file = value.endswith((".yaml", ".yml", ".json")) or Path(value).is_file()
    return not (is_class or is_file or value.lstrip()[:1] == "{" or value.lower() in ("", "null", "none"))


def _typed(entry: Entry) -> bool:
    """Whether it is of the command line, where every value is a text at first."""
    return entry.where == COMMAND_LINE


def _family(entry: Entry, table: SettingsTable) -> str | None:
    """The setting whose class has the argument that an option of the command line names."""
    if not _typed(entry):
        return None  # looked at with the class itself
    return next((name for name in table.classes if entry.name.startswith(f"{name}.")), None)


def _is_inside(entry: Entry, table: SettingsTable) -> bool:
    """Whether the name leads into a value that is a mapping or a class."""
    above = [entry.name[:dot] for dot in range(len(entry.name)) if entry.name[dot] == "."]
    return any({"object", "dict", "list"} & set(table.settings[name].kinds) for name in above if name in table.settings)


def _missing(entries: Sequence[Entry], table: SettingsTable, has_own_module: bool) -> list[str]:
    """Settings that a run needs and nothing gives; those of sections in files of their own are not looked for."""
    given = {entry.name for entry in entries}
    elsewhere = {entry.name for entry in entries if isinstance(entry.value, str)}
    return [
        f"{name} is not set, and a run needs it. {_first_sentence(setting)}"
        for name, setting in table.settings.items()
        if setting.is_required and name not in given and name.partition(".")[0] not in elsewhere
        if not (has_own_module and name.startswith("model."))
    ]


def _first_sentence(setting: Setting) -> str:
    return setting.text.partition(". ")[0].rstrip(".") + "."


def _example(setting: Setting) -> str:
    simple = isinstance(setting.default, int | float | str) and setting.default != ""
    return (
        f" By default it is {str(setting.default).lower() if isinstance(setting.default, bool) else setting.default}."
        if simple
        else ""
    )
