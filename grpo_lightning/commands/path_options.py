"""Options below a name: ``--model.environment my.Game --model.environment.limit 9``, of a thing that is named by its path alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from grpo_lightning.class_entry import KEYS

ENVIRONMENT = "model.environment"
"""Either one environment or several by name; beside a class_path its own check finds misspelt settings, which ``**kwargs`` would take."""
NAMED = (
    *("model.rewards", "model.eval_rewards", "model.tools", "model.loss_type", "model.advantages", "data.converter"),
    ENVIRONMENT,
)
"""Settings that take a registered name or an import path, with or without settings of what it names."""


def keep_names(parser: LightningArgumentParser) -> None:
    """Lets options below the settings of ``NAMED`` be settings of what was named before, in a config or on the command line.

    jsonargparse does so for classes whose base it knows. Of a function, a registered name or any other class it would drop
    the name and keep the option alone.
    """
    for action in parser._actions:
        if action.dest in NAMED:
            kind = type(action)
            action.__class__ = type(kind.__name__, (_PathOption, kind), {})


class _PathOption:
    """Before the class of jsonargparse's action for a setting."""

    dest: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Takes one option of the command line into the settings so far."""
        action: Any = super()
        if len(args) != 4 or not str(args[3]).startswith(f"--{self.dest}."):
            return action.__call__(*args, **kwargs)
        settings, option = args[1], args[3]
        before = settings.get(self.dest)
        if isinstance(before, str) and "," in before:
            raise TypeError(
                f"{option} is a setting of one thing, and {self.dest}={before} names several. Give --{self.dest} as a list, with "
                "class_path and init_args for those that have settings."
            )
        action.__call__(*args, **kwargs)
        after = settings.get(self.dest)
        old, new = _last(before), _last(after)
        path = option.removeprefix(f"--{self.dest}.").split(".")
        if not isinstance(new, dict) or set(new) == KEYS or path[0] in ("class_path", "dict_kwargs"):
            return None  # it names a thing, or jsonargparse knows what the settings are of
        names = isinstance(old, str) or (isinstance(old, Mapping) and "class_path" in old)
        if names and self.dest != ENVIRONMENT and path[0] != "init_args":
            path = ["init_args", *path]
        if names or self.dest == ENVIRONMENT:
            whole = put(old, path, _read(args[2]))
            settings.update([*after[:-1], whole] if isinstance(after, list) else whole, self.dest)
        return None


def _last(value: Any) -> Any:
    """Of a list the last one, to which jsonargparse gives the options below it."""
    return value[-1] if isinstance(value, list) and value else value


def _read(text: str) -> Any:
    """What a file would hold for it: a number, true, null, a list, a mapping, or the text itself."""
    for read in (json.loads, yaml.safe_load):  # to YAML 1e-4 is a text, and [a] is no JSON
        with suppress(ValueError, yaml.YAMLError):
            found = read(text)
            if found is None or isinstance(found, bool | int | float | list | dict):
                return found
    return text


def put(settings: Any, path: Sequence[str], value: Any) -> Any:
    """The settings with a value at a path of names; on the way, the name of a thing becomes its class_path.

    Example:
        >>> put("my.Game", ["init_args", "limit"], 9)
        {'class_path': 'my.Game', 'init_args': {'limit': 9}}
        >>> put({"easy": "my.Game", "hard": "my.Game"}, ["hard", "init_args", "limit"], 9)
        {'easy': 'my.Game', 'hard': {'class_path': 'my.Game', 'init_args': {'limit': 9}}}
    """
    if not path:
        return value
    inner = {"class_path": settings} if isinstance(settings, str) else dict(settings or {})
    return {**inner, path[0]: put(inner.get(path[0]), path[1:], value)}
