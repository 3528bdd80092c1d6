"""A config file as nested values, with the line of each key; keys that stand twice are refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

UNREAD = object()
"""In place of a value that is not looked at: one that is added to a list."""


class ConfigError(ValueError):
    """A config that cannot be used; says what, where and why in one line."""


COMMAND_LINE = "command line"
"""Where an entry is that no file has."""


@dataclass(frozen=True)
class Entry:
    """A value of a config file or of the command line.

    Args:
        name: Dotted: ``model.beta``.
        value: As YAML has it.
        where: For messages: ``run.yaml, line 3``, or the command line.
    """

    name: str
    value: Any
    where: str


def read_entries(path: str) -> list[Entry]:
    """Every key of a config file, sections before what is in them.

    Raises:
        ConfigError: If it is no YAML mapping, or has a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read: {error.strerror}. Name a YAML file that exists.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {path} is no text, so it is no YAML file. Name the run's config.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no valid YAML: {_problem(error)}.") from error
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path} holds {_kind(root)}, and a config holds sections such as model: and data:.")
    return _entries(root, path, "")


SECTIONS = ("trainer", "model", "data", "model.reward_composition", "model.reward_runtime")
"""Of a run's config, what the commands beside ``fit`` read."""


def read_sections(path: Path) -> dict[str, Any]:
    """A run's config as nested dictionaries, its sections among them where they are given.

    Raises:
        ConfigError: If it is no YAML mapping, has a key twice, or something else in place of a section.
    """
    for entry in read_entries(str(path)):
        if entry.name in SECTIONS and not isinstance(entry.value, dict):
            found = "null" if entry.value is None else repr(entry.value)
            raise ConfigError(
                f"{entry.name}={found} cannot be used ({entry.where}): it holds settings. Give some, or leave the section out."
            )
    content: dict[str, Any] | None = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content or {}


def _entries(node: yaml.MappingNode, path: str, prefix: str) -> list[Entry]:
    found: list[Entry] = []
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key_node.tag.endswith(":merge"):
            continue
        if key in lines:
            raise ConfigError(
                f"{prefix}{key} stands twice in {path}, in lines {lines[key]} and {line}, and only one can count. "
                "Remove one of them."
            )
        lines[key] = line
        found.append(Entry(prefix + key, _value(value_node), f"{path}, line {line}"))
        if isinstance(value_node, yaml.MappingNode):
            found += _entries(value_node, path, f"{prefix}{key}.")
        elif isinstance(value_node, yaml.SequenceNode):
            for each in value_node.value:  # twins in the entries of a list
                if isinstance(each, yaml.MappingNode):
                    _entries(each, path, f"{prefix}{key}.")
    return found


def _value(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _kind(node: yaml.Node) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"


def _problem(error: yaml.YAMLError) -> str:
    """The parser's words in one line, with the place."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    hint = " (indent with spaces, not tabs)" if r"'\t'" in problem else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}{hint}"
