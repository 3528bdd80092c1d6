"""Rewards by name: the registry, and import paths as names."""

from __future__ import annotations

import importlib
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any

from grpo_lightning.errors import ExplainedError, did_you_mean
from grpo_lightning.rewards.base import CALLING, RESERVED, UNNAMED, BaseRewardFunction
from grpo_lightning.rewards.function import FunctionReward

Registrable = type[Any] | Callable[..., Any]

REWARD_FUNCTIONS: dict[str, Registrable] = {}
"""Registered name -> reward class or plain function."""


class NoRewardError(ExplainedError, TypeError):
    """What a name leads to cannot score completions."""


def register_reward(name: str, **calling: Any) -> Callable[[Registrable], Registrable]:
    """Decorator that registers a reward class or a plain function under ``name``.

    Args:
        name: What configs call it.
        calling: How it may be called, set as attributes on it: ``scope="completion"``, ... (see BaseRewardFunction).

    Raises:
        ValueError: If the name is taken.
        TypeError: If a class has no ``__call__``, or ``calling`` has other names.
    """
    if set(calling) - set(CALLING):
        raise TypeError(f"register_reward takes {', '.join(CALLING)}; got {', '.join(calling)}.")

    def decorator(reward: Registrable) -> Registrable:
        if name in REWARD_FUNCTIONS:
            raise ValueError(f"Reward function '{name}' is already registered.")
        REWARD_FUNCTIONS[name] = _checked(reward, name)
        for setting, value in calling.items():
            setattr(reward, setting, value)
        return reward

    return decorator


def get_reward_function(name: str, /, **kwargs: Any) -> BaseRewardFunction:
    """The reward registered as ``name``, or found at that import path, made with ``kwargs``.

    ``name`` is positional, so that ``kwargs`` may have one too: what metrics and errors call the reward.

    Raises:
        ValueError: If nothing has that name. The text lists what is available.
    """
    if name in REWARD_FUNCTIONS:
        return make_reward(REWARD_FUNCTIONS[name], name, **kwargs)
    if "." in name:
        return make_reward(import_reward(name), name.rpartition(".")[2], **kwargs)
    available = ", ".join(REWARD_FUNCTIONS) or "none"
    meant = did_you_mean(name, REWARD_FUNCTIONS)
    raise ValueError(f"Reward function '{name}' not found.{meant} Available reward functions: {available}")


def get_reward_functions(names: str | list[str], /, **kwargs: Any) -> list[BaseRewardFunction]:
    """Several rewards by name, each made with ``kwargs``.

    Args:
        names: A list, or one string with commas: ``"accuracy,format"``.
        kwargs: Settings given to every one of them.
    """
    return [get_reward_function(name, **kwargs) for name in split_names(names)]


def list_reward_functions() -> list[str]:
    """The registered names, in order of registration."""
    return list(REWARD_FUNCTIONS)


def split_names(names: str | list[str]) -> list[str]:
    """``"a, b"`` as ``["a", "b"]``; a list stays as it is."""
    return [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else names


def make_reward(reward: Registrable, fallback_name: str, /, **kwargs: Any) -> BaseRewardFunction:
    """A reward from what a config names, made with its ``init_args``.

    A reward class is made with them, as is any other class whose instances can be called; a factory is called with them,
    and what it returns is the reward; of a plain function they become fixed arguments.

    Raises:
        TypeError: If a factory returns no reward.
    """
    if isinstance(reward, type) and issubclass(reward, BaseRewardFunction):
        made: BaseRewardFunction = reward(**kwargs)
        if made.name == UNNAMED:
            made.name = fallback_name
        return made
    own = inspect.signature(reward).parameters
    calling = {setting: kwargs.pop(setting) for setting in CALLING if setting in kwargs and setting not in own}
    common: dict[str, Any] = {key: kwargs.pop(key) for key in ("name", "weight") if key in kwargs and key not in own}
    function: Callable[..., Any] = reward
    if isinstance(reward, type):
        function, kwargs = reward(**kwargs), {}
    elif is_factory(reward, kwargs):
        function, kwargs = _made_by_factory(reward, kwargs, fallback_name), {}
        if isinstance(function, BaseRewardFunction):
            return function
    _warn_of_misspelt(kwargs.keys() - own.keys(), fallback_name)
    given: dict[str, Any] = {"name": fallback_name, **common, **calling}
    return FunctionReward(**given, function=function, settings=kwargs)


def _warn_of_misspelt(settings: Collection[str], name: str) -> None:
    """Of settings that a function gets among its ``**kwargs``, where one of every reward's has a name like it."""
    for setting in sorted(settings):
        meant = did_you_mean(setting, [*CALLING, "name", "weight"])
        if meant:
            warnings.warn(
                f"Reward {name}: {setting} in its init_args is no parameter of the function, which gets it as one of its **kwargs."
                f"{meant} Name it in the function's parameters if it is meant for it.",
                stacklevel=2,
            )


class NoRewardMadeError(ExplainedError, TypeError):
    """What was taken for a factory of rewards, since it takes no completions, made none."""


def _made_by_factory(factory: Callable[..., Any], kwargs: dict[str, Any], name: str) -> Callable[..., Any]:
    made: Callable[..., Any] = factory(**kwargs)
    if not callable(made):
        raise NoRewardMadeError(
            f"{name} takes neither prompts nor completions, so it was called with {kwargs} to make a reward, and returned "
            f"a {type(made).__name__}. Let it return a function, or take completions or **kwargs."
        )
    return made


def import_reward(path: str) -> Registrable:
    """The class or function at ``package.module.attribute``.

    Raises:
        ValueError: Saying whether the module or the attribute is missing.
    """
    module_name, _, attribute = path.rpartition(".")
    try:
        module: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A missing dependency inside the user's own module is not a misspelt path.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ModuleNotFoundError(
                f"Reward '{path}' cannot be imported: '{module_name}' imports '{error.name}', which is not installed. Install "
                "it in this environment.",
                name=error.name,
            ) from error
        outer_name, _, class_name = module_name.rpartition(".")
        outer = sys.modules.get(outer_name)
        if not isinstance(getattr(outer, class_name, None), type):
            raise ValueError(
                f"Reward '{path}' not found: there is no module '{error.name}'.{_not_a_file(path)} Check the spelling, and that the command "
                f"runs where the module can be imported. Registered rewards: {', '.join(REWARD_FUNCTIONS) or 'none'}"
            ) from error
        module, module_name = getattr(outer, class_name), f"{outer_name}.{class_name}"  # a method of a class
    except SyntaxError as error:
        raise ValueError(
            f"Reward '{path}' cannot be imported: {error.filename}, line {error.lineno}: {error.msg}. Correct that line."
        ) from error
    if not hasattr(module, attribute):
        has = ", ".join(name for name, value in vars(module).items() if callable(value) and name[0] != "_") or "nothing"
        raise ValueError(
            f"Reward '{path}' not found: module '{module_name}' has no attribute '{attribute}'."
            f"{did_you_mean(attribute, has.split(', '))} It has: {has}"
        )
    return _checked(getattr(module, attribute), path)


def _not_a_file(path: str) -> str:
    return f" Name the function too, as in {path[:-3]}.my_reward." if path.endswith(".py") else ""


def _checked(reward: Any, name: str) -> Registrable:
    if inspect.isclass(reward) and not any("__call__" in vars(kind) for kind in reward.__mro__):
        raise NoRewardError(
            f"Reward '{name}' is the class {reward.__name__}, which is not a BaseRewardFunction, and its instances cannot be "
            "called. Derive it from BaseRewardFunction, or give it a __call__(self, completions, **kwargs)."
        )
    if not callable(reward):
        raise NoRewardError(
            f"Reward '{name}' is a {type(reward).__name__}, neither a reward class nor a function. Name one that takes completions."
        )
    return reward


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
