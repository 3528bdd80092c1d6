"""One flat signature out of the settings of a module's parts: each is stated and documented once, beside its part."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Container
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar, cast, get_type_hints

from grpo_lightning.settings.given import refuse_unknown, refuse_wrong_types

Arguments = ParamSpec("Arguments")
Settings = TypeVar("Settings")
Part = TypeVar("Part")
Module = TypeVar("Module")


def takes(
    settings: Callable[Arguments, Settings],
) -> Callable[[Callable[[Module, Settings], None]], Callable[Concatenate[Module, Arguments], None]]:
    """Lets an ``__init__`` that has one argument, a settings object, be called with the settings themselves.

    Type checkers see the settings by the ParamSpec; ``inspect.signature``, editors and jsonargparse by ``__signature__``,
    and their texts by the docstring, which is put together from those of the settings' classes.

    Args:
        settings: A dataclass with keyword-only fields that inherits from those of the parts.
    """
    signature = flat_signature(cast(type, settings))
    hints = {name: each.annotation for name, each in signature.parameters.items()}

    def decorate(init: Callable[[Module, Settings], None]) -> Callable[Concatenate[Module, Arguments], None]:
        @functools.wraps(init)
        def wrapped(self: Module, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
            refuse_unknown(type(self), kwargs, signature)
            refuse_missing(type(self), kwargs, signature)
            refuse_wrong_types(type(self), kwargs, hints)
            init(self, settings(*args, **kwargs))

        shown: Any = wrapped
        myself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        shown.__signature__ = signature.replace(parameters=[myself, *signature.parameters.values()])
        shown.__annotations__ = hints
        shown.__doc__ = "Takes the settings below.\n\nArgs:\n" + "\n".join(
            f"    {name}: {text}" for name, text in documented(cast(type, settings)).items()
        )
        del shown.__wrapped__
        return wrapped

    return decorate


def flat_signature(settings: type) -> inspect.Signature:
    """The settings as keyword-only parameters, required ones first, each with the type that its own module means."""
    hints, empty = get_type_hints(settings), inspect.Parameter.empty
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in own_fields(settings)
    ]
    return inspect.Signature(sorted(parameters, key=lambda each: each.default is not empty))


def part_of(settings: Any, part: type[Part]) -> Part:
    """The settings of one part out of the flat ones; made anew, so that it checks them."""
    return part(**{field.name: getattr(settings, field.name) for field in own_fields(part)})


def own_fields(settings: type) -> list[Field[Any]]:
    """The fields that are settings."""
    assert is_dataclass(settings)
    return [field for field in fields(settings) if field.init]


def documented(settings: type) -> dict[str, str]:
    """The meaning of each setting, from the ``Args`` of the class that states it."""
    texts: dict[str, str] = {}
    for cls in settings.__mro__:
        texts = described_arguments(cls.__dict__.get("__doc__") or "") | texts
    return {field.name: texts.get(field.name, "") for field in own_fields(settings)}


def described_arguments(docstring: str) -> dict[str, str]:
    r"""Names and texts of a docstring's section ``Args``.

    Example:
        >>> described_arguments("Does.\n\nArgs:\n    beta: Weight of\n        the KL term.\n\nRaises:\n    ValueError: No.")
        {'beta': 'Weight of the KL term.'}
    """
    section = inspect.cleandoc(docstring).partition("Args:\n")[2]
    section = re.split(r"\n(?=\S)", section)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def refuse_missing(module: type, given: dict[str, Any], signature: inspect.Signature) -> None:
    """Refuses to go on without a setting that has no default.

    Raises:
        TypeError: Naming all of them.
    """
    missing = missing_settings(given, signature)
    if missing:
        raise TypeError(
            f"{module.__name__} is not told {' and '.join(missing)}. Settings are given by name: "
            f"{module.__name__}({', '.join(f'{name}=...' for name in missing)}, ...)."
        )


def missing_settings(given: Container[str], signature: inspect.Signature) -> list[str]:
    """Names of what has no default and is not given."""
    required = (name for name, each in signature.parameters.items() if each.default is inspect.Parameter.empty)
    return [name for name in required if name not in given]
