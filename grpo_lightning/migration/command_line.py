"""The command lines that start a run of TRL's: options alone, `trl grpo`, `accelerate launch`, torchrun, python."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

_NUMBER = re.compile(r"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_TEXT_KEY = re.compile(r"(?:name|dir|path|id|project|config|revision|split|prompt|template|token|host|group|version)$")
PROGRAMS = ("accelerate", "torchrun", "deepspeed", "python", "python3", "trl", "uv", "nohup", "srun", "time", "env")
SHARDED = {"deepspeed_config_file": "deepspeed", "zero_stage": "use_deepspeed"}
"""accelerate's option -> TRL's setting."""


def read_command(words: Sequence[str]) -> dict[str, Any]:
    """Settings of a command line, with those of the launcher; dashes in names count as underscores.

    Raises:
        ValueError: If it runs another trainer of TRL's, or has a value without a name.

    Example:
        >>> read_command("accelerate launch --num_processes 8 grpo.py --learning-rate 1e-5 --bf16".split())
        {'num_processes': 8, 'learning_rate': 1e-05, 'bf16': True}
    """
    words = list(words)
    while words and re.fullmatch(r"[A-Z_][A-Z0-9_]*=\S*", words[0]):  # CUDA_VISIBLE_DEVICES=0,1 and the like
        words.pop(0)
    if not words or words[0].rpartition("/")[2] not in PROGRAMS:
        return _options(words)
    start = _script_end(words)
    launcher = [word for word in words[:start] if word not in PROGRAMS and word not in ("launch", "run")]
    return _launcher_options(launcher) | _options(words[start:])


def _script_end(words: list[str]) -> int:
    """Where the options of the script begin."""
    for index, word in enumerate(words):
        if word.endswith(".py"):
            return index + 1
        if word == "-m" and index + 1 < len(words) and not words[index + 1].startswith("-"):
            is_launcher = words[index + 1].split(".")[0] in ("accelerate", "torch")  # its script comes later
            if not is_launcher:
                return index + 2
        if word.rpartition("/")[2] == "trl":
            command = words[index + 1] if index + 1 < len(words) else "nothing"
            if command != "grpo":
                raise ValueError(f"`trl {command}` is another trainer: only `trl grpo` has a counterpart here.")
            return index + 2
    raise ValueError(
        f"{' '.join(words)!r} names no script. Give the whole command: accelerate launch grpo.py --config ..."
    )


def _launcher_options(words: list[str]) -> dict[str, Any]:
    found = _options([word for word in _without_short(words) if not word.endswith(".py")], is_launcher=True)
    own = {name: value for name, value in found.items() if value != "auto" or name == "nproc_per_node"}
    return {SHARDED.get(name, name): value for name, value in own.items()}  # auto: DeepSpeed takes what the script says


def _without_short(words: list[str]) -> list[str]:
    return [word for word in words if word.startswith("--") or not re.match(r"-[A-Za-z]", word)]


def _options(words: Sequence[str], is_launcher: bool = False) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    name = None
    values: dict[str, list[Any]] = {}
    for word in words:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            name = name.replace("-", "_")
            values[name] = [parsed(value)] if value else []
        elif name is not None:
            values[name].append(parsed(word))
        elif not is_launcher:
            raise ValueError(f"{word!r} comes before any --name. Write --name value, as for `trl grpo`.")
    for name, given in values.items():
        if not given and name.startswith("no_") and name != "no_cuda":
            settings[name.removeprefix("no_")] = False
        else:
            settings[name] = True if not given else given[0] if len(given) == 1 else given
    return settings


def parsed(word: str) -> Any:
    """A number, a truth value, a list or a mapping where the word is one; else the text as it stands.

    Example:
        >>> parsed("1e-5"), parsed("true"), parsed("{use_reentrant: false}"), parsed("Reply: yes")
        (1e-05, True, {'use_reentrant': False}, 'Reply: yes')
    """
    try:
        value = yaml.safe_load(word)
    except yaml.YAMLError:
        return word
    is_written_so = word.lstrip()[:1] in ("{", "[")
    if isinstance(value, dict | list):
        return value if is_written_so else word
    return scalar(value) if value is None or isinstance(value, bool | int | float | str) else word


def unquoted(key: str, value: Any) -> Any:
    """``"8"`` and ``"true"`` of a YAML file as TRL's parser reads them; names and texts stay as they are.

    Example:
        >>> unquoted("num_generations", "8"), unquoted("bf16", "True"), unquoted("run_name", "8"), unquoted("beta", "0.04")
        (8, True, '8', 0.04)
    """
    if not isinstance(value, str) or _TEXT_KEY.search(key):
        return value
    if _NUMBER.fullmatch(value):
        return float(value) if "." in value else int(value)
    return {"true": True, "false": False}.get(value.lower(), value)


def scalar(value: Any) -> Any:
    """1e-6 as a number: YAML 1.1 reads it as text, since it has no dot.

    Example:
        >>> scalar("1e-6"), scalar("dapo"), scalar("nan")
        (1e-06, 'dapo', 'nan')
    """
    if not isinstance(value, str) or not value[:1].isdigit():
        return value
    try:
        return float(value) if "e" in value.lower() else value
    except ValueError:
        return value
