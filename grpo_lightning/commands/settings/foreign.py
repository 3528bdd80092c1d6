"""Settings of a run's config that came from somebody else: its peft configuration is made of peft's own classes, by name."""

from __future__ import annotations

from typing import Any

import peft

OWN = ("peft.",)
"""Before the name of a class, which may stand alone too; nothing else that a config names is looked up."""


def peft_config(setting: Any) -> Any:
    """The configuration that a run's config writes: a class of peft by ``class_path``, called with its ``init_args``.

    jsonargparse would import whatever module is named, at any depth, and importing runs it.

    Args:
        setting: ``model.peft_config``: None, a class path, or a dictionary; without a class path it is peft's own base.

    Raises:
        ValueError: Naming a class that is not peft's, or what the class says of its arguments.

    Example:
        >>> peft_config({"class_path": "peft.LoraConfig", "init_args": {"r": 4}}).r
        4
        >>> peft_config("this.X")
        Traceback (most recent call last):
            ...
        ValueError: the run's config names the class this.X for its model, and only fit imports what a config names...
    """
    if isinstance(setting, str):
        return peft_config({"class_path": setting})
    return _made(setting)


