"""Whether a value can be what a setting takes. Where the table cannot tell, it may: the full check follows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from grpo_lightning.commands.settings.table import Setting
from grpo_lightning.settings.given import WORDS

NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?\.?(inf|nan)", re.IGNORECASE)
"""Also ``1e-6``, which YAML 1.1 takes for a text and the command line for a number."""


def fits(value: Any, setting: Setting, is_typed: bool = False) -> bool:
    """Whether the value may be one for the setting.

    Args:
        value: As YAML has it.
        setting: With what it takes.
        is_typed: On the command line, where 5 may be a text.

    Example:
        >>> [fits(value, Setting(kinds=("int",))) for value in (8, "8", 8.5, "eight", [8], True)]
        [True, True, False, False, False, False]
    """
    kinds = set(setting.kinds)
    if value in setting.choices or str(value) in map(str, setting.choices) or "object" in kinds:
        return True
    if value is None:
        return "null" in kinds or setting.default is None
    if isinstance(value, bool):
        return bool(kinds & ({"bool", "str"} if is_typed else {"bool"}))
    if isinstance(value, int | float):
        accepted = {"float"} | ({"str"} if is_typed else set()) | ({"bool"} if value in (0, 1) else set())
        return bool(kinds & (accepted | ({"int"} if float(value).is_integer() else set())))
    if isinstance(value, str):
        return _text_fits(value, kinds)
    return ("list" if isinstance(value, list) else "dict") in kinds


def _text_fits(text: str, kinds: set[str]) -> bool:
    if "str" in kinds:
        return True
    if kinds & {"list", "dict"} and (text.lstrip()[:1] in ("[", "{") or Path(text).is_file()):
        return True
    if NUMBER.fullmatch(text.strip()):
        number = float(text.replace("_", ""))
        return "float" in kinds or ("int" in kinds and number.is_integer())
    is_word = text.lower() in ("true", "false", "yes", "no", "on", "off")
    return (is_word and "bool" in kinds) or (text.lower() in ("null", "none", "~", "") and "null" in kinds)


def wanted(setting: Setting) -> str:
    """What the setting takes, in words.

    Example:
        >>> wanted(Setting(kinds=("int",), choices=("auto",), default="auto"))
        'a whole number or auto'
    """
    words = [WORDS[kind] for kind in WORDS if kind in setting.kinds]
    named = [choice for choice in setting.choices if choice is not False or "off" not in setting.choices]
    choices = list(dict.fromkeys(map(str, named)))
    *before, last = [word for word in words if word != "null"] + choices + (["null"] if "null" in words else [])
    return f"{', '.join(before)} or {last}" if before else last
