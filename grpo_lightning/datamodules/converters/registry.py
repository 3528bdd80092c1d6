"""Converters by name: what a config's ``data.converter`` may say."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

from grpo_lightning.class_entry import class_path_of
from grpo_lightning.errors import did_you_mean

Converter = Callable[[Mapping[str, Any]], dict[str, Any]]
"""One raw row in, one row with a ``prompt`` and the columns for the rewards out. The row is not changed."""

DATASET_CONVERTERS: dict[str, Callable[..., Any]] = {}
"""Registered converters: classes whose instances are a ``Converter``, or functions that are one."""

Registered = TypeVar("Registered", bound=Callable[..., Any])


def register_converter(name: str) -> Callable[[Registered], Registered]:
    """Decorator that makes a class or a function available as ``data.converter: name``.

    A class receives ``data.converter_args`` on construction. A function receives them as keyword arguments beside the
    row.

    Raises:
        ValueError: If the name is taken.

    Example:
        >>> @register_converter("capitals")
        ... def capitals(example, country="country"):
        ...     return {"prompt": f"The capital of {example[country]} is", "ground_truth": example["capital"]}
        >>> get_dataset_converter("capitals", country="land")({"land": "Peru", "capital": "Lima"})["prompt"]
        'The capital of Peru is'
        >>> del DATASET_CONVERTERS["capitals"]
    """

    def register(converter: Registered) -> Registered:
        if name in DATASET_CONVERTERS:
            raise ValueError(f"Dataset converter '{name}' is already registered. Choose another name.")
        DATASET_CONVERTERS[name] = converter
        return converter

    return register


def get_dataset_converter(name: str, **kwargs: Any) -> Converter:
    """The converter registered under a name, or found at an import path, with its arguments bound.

    Args:
        name: A key of ``DATASET_CONVERTERS``, or ``package.module.Converter``.
        kwargs: Arguments of the class, or keyword arguments of the function.

    Raises:
        ValueError: If there is no such converter, or it does not take these arguments.
    """
    factory = DATASET_CONVERTERS.get(name) or _imported(name)
    if factory is None:
        available = ", ".join(sorted(DATASET_CONVERTERS))
        meant = did_you_mean(name, DATASET_CONVERTERS)
        raise ValueError(
            f"Dataset converter '{name}' not found.{meant} Available converters: {available}. "
            "Others are named by import path (package.module.Converter)."
        )
    parameters = inspect.signature(factory).parameters
    accepts_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    names = list(parameters) if isinstance(factory, type) else list(parameters)[1:]  # a function's first is the row
    unknown = [] if accepts_any else sorted(set(kwargs) - set(names))
    if unknown:
        raise ValueError(f"Dataset converter '{name}' takes no {', '.join(unknown)}. It takes: {', '.join(names)}.")
    return factory(**kwargs) if isinstance(factory, type) else partial(factory, **kwargs)


Made = TypeVar("Made")


def with_arguments(
    converter: Made | str | dict[str, Any] | None, arguments: dict[str, Any]
) -> tuple[Made | str | None, dict[str, Any]]:
    """``data.converter`` and ``data.converter_args``, with those of ``{"class_path": name, "init_args": arguments}`` taken apart.

    Of a class it is an object by now; such an entry names a registered converter or a function.

    Raises:
        ValueError: If an entry has other keys, or arguments stand beside what has its own.
    """
    if not isinstance(converter, str | None) and arguments:
        raise ValueError("data.converter_args has no effect on a converter with init_args. Put them there.")
    if not isinstance(converter, dict):
        return converter, arguments
    name, own = class_path_of(converter) or (None, {})
    if not isinstance(name, str) or not isinstance(own, Mapping):
        raise ValueError(f"data.converter holds {converter!r:.200}: a converter has the keys class_path and init_args.")
    return name, dict(own)


def _imported(path: str) -> Callable[..., Any] | None:
    """What ``package.module.Name`` refers to; None for a name without dots."""
    module_name, _, attribute = path.rpartition(".")
    if not module_name:
        return None
    try:
        return getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"Dataset converter '{path}' cannot be imported: {error}.") from error
