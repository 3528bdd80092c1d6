"""What a setting may name: one of ours, an import path, or class_path with init_args."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any


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
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ValueError(f"model.{setting}={name!r} is unknown. Choose one of {', '.join(known)}, or an import path.")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"model.{setting}={name!r} cannot be imported: {error}.") from error


def split_spec(setting: str, spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and settings of ``"name"`` or ``{"class_path": ..., "init_args": {...}}``.

    Raises:
        ValueError: If the keys are others.
    """
    if isinstance(spec, str):
        return spec, {}
    if "class_path" not in spec or set(spec) - {"class_path", "init_args"}:
        raise ValueError(f"model.{setting}={dict(spec)!r} has other keys than class_path and init_args.")
    return str(spec["class_path"]), dict(spec.get("init_args") or {})


def made(setting: str, name: str, factory: Any, settings: Mapping[str, Any]) -> Any:
    """What ``factory`` makes of the settings.

    Raises:
        ValueError: If it does not take them.
    """
    try:
        return factory(**settings)
    except TypeError as error:
        raise ValueError(
            f"model.{setting}: {name} cannot be made with init_args={dict(settings)!r}: {error}"
        ) from error
