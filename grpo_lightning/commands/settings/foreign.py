"""Settings of a run's config that came from somebody else: its peft configuration is made of peft's own classes alone."""

from __future__ import annotations

import re
import sys
from dataclasses import fields, is_dataclass
from typing import Any

import peft
import peft.tuners.lora.config as lora_config

OWN = ("peft.",)
"""What the paths of classes begin with that a config may name; the name of a class alone is one of peft's too."""

MEGATRON = (None, "megatron.core")
"""Values of ``megatron_core``, a module that peft imports by name."""


def peft_config(setting: Any) -> Any:
    """``model.peft_config`` of a run's config, made without importing anything.

    A run's directory may come from somebody else. jsonargparse would import the module of whatever class is named, at any
    depth, by ``class_path`` or as a text alone.

    Args:
        setting: As a config has it: None, a class path, or a dictionary; without a class path it is peft's ``PeftConfig``.

    Raises:
        ValueError: If it names a class of another package, or peft does not take it.

    Example:
        >>> peft_config({"class_path": "peft.LoraConfig", "init_args": {"r": 4}}).r
        4
        >>> peft_config("this.X")
        Traceback (most recent call last):
            ...
        ValueError: the run's config names the class this.X for its model, and only fit imports what a config names...
    """
    if setting is None:
        return None
    try:
        made = _made(setting, "PeftConfig")
    except TypeError as error:  # of arguments that a class does not have
        raise _refusal(f"has a model.peft_config that peft does not take ({error})") from error
    if not isinstance(made, peft.PeftConfig):
        raise _refusal(f"has {type(made).__name__} for model.peft_config, which is no configuration of peft")
    if getattr(made, "megatron_core", None) not in MEGATRON:
        raise _refusal(f"names the module {made.megatron_core} for its model")
    return made


def _made(value: Any, expected: str | None = None) -> Any:
    """The value with objects in place of what names their classes; ``expected`` is the class of a text or a dictionary."""
    if isinstance(value, list):
        return [_made(item) for item in value]
    if isinstance(value, str) and (expected is not None or "class_path" in value):
        value = {"class_path": value}
    if not isinstance(value, dict):
        return value
    kind = _own_class(value["class_path"]) if "class_path" in value else getattr(peft, expected or "", None)
    if kind is None:  # a dictionary of plain values, or one that peft makes its class of
        return {name: _made(item) for name, item in value.items()}
    given = {**value.get("init_args", {}), **value.get("dict_kwargs", {})} if "class_path" in value else value
    inner = {field.name: re.search(r"\w+Config\b", str(field.type)) for field in fields(kind)}
    return kind(**{name: _made(item, found[0] if (found := inner.get(name)) else None) for name, item in given.items()})


def _own_class(path: Any) -> Any:
    """The class of peft that a path means; peft has imported the modules of its own already."""
    module, _, name = str(path).rpartition(".")
    places = [vars(sys.modules.get(module) or peft), vars(peft), vars(lora_config)]
    found = next((place[name] for place in places if name in place), None)
    is_own = f"{module}.".startswith(OWN) or not module
    if not (is_own and isinstance(found, type) and is_dataclass(found) and found.__module__.startswith(OWN)):
        raise _refusal(f"names the class {str(path)[:100]} for its model")
    return found


def _refusal(what: str) -> ValueError:
    return ValueError(
        f"the run's config {what}, and only fit imports what a config names. Write the model with fit's own export, or "
        "remove the setting."
    )
