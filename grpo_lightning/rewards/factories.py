"""Tells functions that make a reward from functions that are one."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection, Iterator
from typing import Any

from grpo_lightning.rewards.base import RESERVED

OPEN_ENDED = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def is_factory(function: Callable[..., Any], settings: Collection[str]) -> bool:
    """Whether a function makes a reward, as open-r1's ``get_cosine_scaled_reward(max_len=...)`` does.

    It names nothing that only a reward is given, and needs nothing beyond ``settings``. With ``**kwargs`` it could be
    either, and is a factory if a function inside of it takes completions.

    Args:
        function: Named by a config.
        settings: Names of its ``init_args``.

    Example:
        >>> def get_reward(limit=3):
        ...     def reward(completions, **kwargs):
        ...         return [float(len(text) <= limit) for text in completions]
        ...     return reward
        >>> is_factory(get_reward, {"limit"}), is_factory(get_reward(), ())
        (True, False)
    """
    parameters = inspect.signature(function).parameters
    if set(parameters) & RESERVED:
        return False
    needed = {
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and parameter.kind not in OPEN_ENDED
    }
    if needed - set(settings):  # a reward that reads columns alone
        return False
    is_open = any(parameter.kind in OPEN_ENDED for parameter in parameters.values())
    return not is_open or any(_takes_data(code) for code in _inner_codes(function))


def _inner_codes(function: Callable[..., Any]) -> Iterator[types.CodeType]:
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is not None:
        yield from (constant for constant in code.co_consts if isinstance(constant, types.CodeType))


def _takes_data(code: types.CodeType) -> bool:
    count = code.co_argcount + code.co_kwonlyargcount
    return bool(RESERVED & set(code.co_varnames[:count]))
