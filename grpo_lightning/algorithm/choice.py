"""What a setting may name: one of ours, an import path, or class_path with init_args."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Collection, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from grpo_lightning.class_entry import class_path_of


def find(setting: str, name: str, known: Mapping[str, Any]) -> Any:
    """What is registered as ``name``, or stands at that import path.

    Args:
        setting: Without ``model.``, for the error.
        name: A registered name, or ``package.module.Thing``.
        known: By registered name.

    Raises:
        ValueError: If there is no such thing.

    Example:
        >>> find("kl_estimator", "math.exp", {"k3": None})(0.0)
        1.0
    """
    if name in known:
        return known[name]
    if "." not in name:
        raise ValueError(f"model.{setting}={name!r} is unknown. Choose one of {', '.join(known)}, or an import path.")
    return at_import_path(f"model.{setting}={name!r}", name)


def at_import_path(what: str, path: str) -> Any:
    """What stands at ``package.module.Thing``.

    Args:
        what: The setting with its value, for the error.
        path: The import path.

    Raises:
        ValueError: Where nothing stands there, with where Python looks, or with the name that was perhaps meant.
    """
    module, _, name = path.rpartition(".")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        is_itself = error.name is not None and f"{module}.".startswith(f"{error.name}.")
        where = (
            f" Its file is looked for in the directory that the command is started in, {os.getcwd()}, on PYTHONPATH and "
            "among installed packages."
        )
        raise ValueError(f"{what} cannot be imported: {error}.{where if is_itself else ''}") from error
    except (ImportError, ValueError) as error:
        raise ValueError(f"{what} cannot be imported: {error}.") from error
    if not hasattr(found, name):
        near = get_close_matches(name, dir(found), 1)
        meant = f" Did you mean {module}.{near[0]}?" if near else ""
        raise ValueError(f"{what} cannot be imported: module {module!r} has no attribute {name!r}.{meant}")
    return getattr(found, name)


def split_spec(setting: str, spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and settings of ``"name"`` or ``{"class_path": ..., "init_args": {...}}``.

    Raises:
        ValueError: If the keys are others.
    """
    if isinstance(spec, str):
        return spec, {}
    parts = class_path_of(spec)
    if parts is None:
        raise ValueError(f"model.{setting}={dict(spec)!r} has other keys than class_path and init_args.")
    return str(parts[0]), dict(parts[1])


def made(setting: str, name: str, factory: Any, settings: Mapping[str, Any]) -> Any:
    """What ``factory`` makes of the settings.

    Raises:
        ValueError: If it does not take them.
    """
    try:
        return factory(**settings)
    except TypeError as error:
        taken = ", ".join(inspect.signature(factory).parameters) or "none"
        raise ValueError(
            f"model.{setting}: {name} cannot be made with init_args={dict(settings)!r}: {error}. It takes {taken}."
        ) from error


def chosen(setting: str, spec: Any, known: Mapping[str, Any]) -> tuple[str, Any, dict[str, Any]]:
    """Name, the thing itself and its settings, of whatever a setting may be given as.

    Args:
        setting: Without ``model.``, for the error.
        spec: A registered name or import path, class_path with init_args, or from Python a function or a class.
        known: By registered name.

    Raises:
        ValueError: If it is none of them.

    Example:
        >>> chosen("advantages", {"class_path": "half", "init_args": {"of": 3}}, {"half": round})
        ('half', <built-in function round>, {'of': 3})
    """
    if callable(spec):
        return name_of(spec), spec, {}
    if not isinstance(spec, str | Mapping):
        raise ValueError(f"model.{setting}={spec!r} is no name, no import path and nothing that can be called.")
    name, settings = split_spec(setting, spec)
    return name, find(setting, name, known), settings


def name_of(spec: Any) -> str:
    """What messages call a choice: a name as it is, a function or class by its own."""
    spec = spec.get("class_path") if isinstance(spec, Mapping) else spec
    return spec if isinstance(spec, str) else str(getattr(spec, "__name__", type(spec).__name__))


def loss_made(name: str, factory: type, settings: Mapping[str, Any], given: Mapping[str, Any], known: Any) -> Any:
    """A loss of its own settings and of those that stand beside ``model.loss_type``.

    Args:
        name: Of the loss, for errors.
        factory: A dataclass.
        settings: Its init_args.
        given: Settings beside loss_type.
        known: All losses by name.

    Raises:
        ValueError: If a setting beside it is not the loss's own, is in both places, or is not taken.
    """
    refuse_foreign(name, given, [field.name for field in fields(factory) if field.init], known)
    twice = ", ".join(sorted(given.keys() & settings.keys()))
    if twice:
        raise ValueError(f"model.{twice} is also in model.loss_type.init_args. Remove one of the two.")
    return made("loss_type", name, factory, {**given, **settings})


def refuse_foreign(name: str, given: Mapping[str, Any], own: Collection[str], known: Mapping[str, type]) -> None:
    """Refuses a setting beside ``model.loss_type`` that this loss does not have, with the losses that do."""
    for setting, value in given.items():
        if setting not in own:
            others = [other for other, loss in known.items() if setting in {field.name for field in fields(loss)}]
            raise ValueError(
                f"model.{setting}={value!r} has no effect with model.loss_type={name!r}. Remove it, or use one of: "
                f"{', '.join(others)}."
            )
