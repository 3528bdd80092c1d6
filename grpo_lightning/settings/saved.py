"""The settings that a checkpoint keeps for ``load_from_checkpoint``: those that are plain values."""

from __future__ import annotations

import inspect
from typing import Any

from grpo_lightning.settings.flat import missing_settings
from grpo_lightning.settings.given import refuse_unknown

LIGHTNINGS = ("map_location", "hparams_file", "strict", "weights_only")
"""Arguments of ``load_from_checkpoint`` that are not the module's."""

PLAIN = (str, int, float, bool, type(None))


def plain_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that a file may hold: numbers, texts, and lists and dictionaries of them.

    Objects (a generator, a reward that is a function, an optimizer) are left out: whoever loads the checkpoint brings them.

    Example:
        >>> plain_settings({"beta": 0.04, "rewards": ["accuracy"], "optimizer": print})
        {'beta': 0.04, 'rewards': ['accuracy']}
    """
    return {name: value for name, value in given.items() if is_plain(value)}


def is_plain(value: Any) -> bool:
    """Whether it is made of plain values alone."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(entry) for key, entry in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return isinstance(value, PLAIN)


def check_loaded_settings(module: type, given: dict[str, Any], saved: dict[str, Any]) -> None:
    """Refuses settings for ``load_from_checkpoint`` that Lightning would leave out in silence, or that it would lack.

    A subclass that passes further settings on refuses unknown ones itself.

    Args:
        module: To be made.
        given: By the caller.
        saved: In the checkpoint.

    Raises:
        TypeError: If a name is no setting, or a setting without a default is in neither.
    """
    signature = inspect.signature(module.__init__)  # type: ignore[misc]  # of a class
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in signature.parameters.values()):
        return
    refuse_unknown(module, {name: v for name, v in given.items() if name not in LIGHTNINGS}, signature)
    missing = missing_settings({"self", *saved, *given}, signature)
    if missing:
        raise TypeError(
            f"The checkpoint keeps the settings that are numbers and texts, and model.{', model.'.join(missing)} was made of "
            f"objects. Give them again: {module.__name__}.load_from_checkpoint(path, {'=..., '.join(missing)}=...)."
        )
