"""Reads what users bring: a flat YAML file, TRL's command line, or both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ACCELERATE = ("compute_environment", "distributed_type", "deepspeed_config")
"""Keys of `accelerate config`'s file that no config of a training has."""


def read_source(path: Path | None, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of a YAML file, overridden by ``--key value`` arguments.

    Args:
        path: The file; None for arguments alone.
        arguments: As TRL's command line takes them: ``--beta 0.04 --use_vllm --reward_funcs a b --bf16=true``.

    Raises:
        ValueError: If the file is no flat mapping, or one of Accelerate's, or an argument has no name.
    """
    return (_read_yaml(path) if path else {}) | _read_arguments(arguments)


def _read_yaml(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds {type(content).__name__}, not `key: value` lines. Give a TRL or a flat YAML config."
        )
    ours = {"model", "trainer", "data"} & {key for key, value in content.items() if isinstance(value, dict)}
    if ours:
        raise ValueError(f"{path} has the sections {', '.join(sorted(ours))}: it is a config of this package already.")
    launcher = [key for key in ACCELERATE if key in content]
    if launcher:
        raise ValueError(
            f"{path} is a config of `accelerate launch` ({', '.join(launcher)}): it says how processes start, not what "
            "they train. Give TRL's config of the run. In place of this file, set trainer.devices, trainer.num_nodes and, "
            "where it says DeepSpeed or FSDP, trainer.strategy: fsdp2."
        )
    return {str(key): numeric(value) for key, value in content.items()}


def _read_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    name = None
    values: dict[str, list[Any]] = {}
    for argument in arguments:
        if argument.startswith("--"):
            name, _, value = argument[2:].partition("=")
            values[name] = [numeric(yaml.safe_load(value))] if value else []
        elif name is None:
            raise ValueError(f"{argument!r} comes before any --name. Write --name value, as for `trl grpo`.")
        else:
            values[name].append(numeric(yaml.safe_load(argument)))
    for name, given in values.items():
        if not given and name.startswith("no_"):
            settings[name.removeprefix("no_")] = False
        else:
            settings[name] = True if not given else given[0] if len(given) == 1 else given
    return settings


def numeric(value: Any) -> Any:
    """1e-6 as a number: YAML 1.1 reads it as text, since it has no dot.

    Example:
        >>> numeric("1e-6"), numeric("dapo"), numeric("nan")
        (1e-06, 'dapo', 'nan')
    """
    if not isinstance(value, str) or not value[:1].isdigit():
        return value
    try:
        return float(value) if "e" in value.lower() else value
    except ValueError:
        return value
