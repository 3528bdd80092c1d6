"""From what a config or a script says to a list of rewards."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from grpo_lightning.class_entry import class_path_of
from grpo_lightning.rewards.base import UNNAMED, BaseRewardFunction
from grpo_lightning.rewards.function import FunctionReward, function_name
from grpo_lightning.rewards.registry import REWARD_FUNCTIONS, get_reward_function, import_reward, split_names

RewardSpec = list[BaseRewardFunction | str | dict[str, Any]] | dict[str, Any] | str
"""Type of ``model.rewards`` in a config: ``accuracy,format``, a list of names, import paths and class_path entries, or one entry.

Text comes last, else the command line's ``[accuracy,format]`` and ``{"class_path": ...}`` would be read as names. The dict takes
entries whose ``class_path`` is a registered name or a plain function.
"""


RewardEntry = str | BaseRewardFunction | Callable[..., Any] | dict[str, Any]


def resolve_rewards(
    spec: RewardEntry | Sequence[RewardEntry],
    weights: str | Sequence[float] | None = None,
) -> list[BaseRewardFunction]:
    """The rewards that ``spec`` names, with unique names and their final weights.

    A name that occurs twice gets a suffix (``accuracy``, ``accuracy_2``), so that each has its own metrics.

    Args:
        spec: Registered names (``"accuracy,format"``), import paths, reward objects, plain or async functions,
            ``{"class_path": ..., "init_args": {...}}``, or a list that mixes them.
        weights: One per reward, ``"1.0,0.5"`` or numbers; None keeps the rewards' own.

    Raises:
        ValueError: If there is no reward, one cannot be found, weights and rewards differ in number, or one of ``weights``
            would replace another that an entry gives.
    """
    entries = _entries(spec)
    resolved = [(reward, given_weight(entry, reward)) for entry in entries for reward in _resolve_entry(entry)]
    if not resolved:
        raise ValueError("model.rewards is empty: name at least one reward, for example accuracy,format.")
    rewards, own = zip(*resolved, strict=True)
    weighted = _with_weights(_with_unique_names(list(rewards)), parse_weights(weights))
    for reward, weight in zip(weighted, own, strict=True):
        if weight not in (None, reward.weight):
            raise ValueError(
                f"model.rewards gives {reward.name} the weight {weight}, and model.reward_weights {reward.weight:g}. Only one "
                "can count: leave weight out of its init_args, or reward_weights out of the config."
            )
    for reward in weighted:
        if not math.isfinite(reward.weight * reward.weight):  # groups are compared by the squares of their totals
            raise ValueError(
                f"The weight of the reward {reward.name} is {reward.weight}, which makes every total NaN or infinite. Set a "
                "smaller number in model.reward_weights."
            )
    return weighted


def eval_rewards(spec: RewardEntry | Sequence[RewardEntry] | None) -> list[BaseRewardFunction]:
    """The rewards of ``model.eval_rewards``, which are reported and never trained on.

    Raises:
        ValueError: As ``resolve_rewards``; if an entry gives a weight other than 0, which nothing would use.
    """
    if spec is None or spec in ("", [], ()):
        return []
    made = [(entry, _resolve_entry(entry)) for entry in _entries(spec)]
    for entry, rewards in made:
        for reward in rewards:
            if weight := given_weight(entry, reward):
                raise ValueError(
                    f"model.eval_rewards gives {reward.name} the weight {weight}, which has no effect: these rewards are reported "
                    "and never trained on. Leave weight out, or name the reward in model.rewards."
                )
    return resolve_rewards([reward for _, rewards in made for reward in rewards])


def given_weight(entry: Any, reward: BaseRewardFunction) -> float | None:
    """The weight that an entry gives its reward; None where it leaves it to the class or factory.

    What jsonargparse has made of an entry has all arguments, so that one at its default is not known to have been given.
    """
    if isinstance(entry, dict):
        weight: float | None = (entry.get("init_args") or {}).get("weight")
        return weight if weight == reward.weight else None  # else it is an argument of the reward's own
    if not isinstance(entry, BaseRewardFunction):
        return None
    arguments = inspect.signature(type(entry)).parameters
    is_open = any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values())
    if "weight" not in arguments and not is_open:  # of its own making
        return None
    default = arguments["weight"].default if "weight" in arguments else type(entry).weight
    return None if reward.weight == default else reward.weight


def without_weights(spec: RewardEntry | Sequence[RewardEntry]) -> list[RewardEntry]:
    """The same rewards, whose entries give none a weight; an argument of a reward's own that is called ``weight`` stays.

    Example:
        >>> without_weights([{"class_path": "accuracy", "init_args": {"mode": "exact", "weight": 2.0}}, "format"])
        [{'class_path': 'accuracy', 'init_args': {'mode': 'exact'}}, 'format']
    """
    return [_without_weight(entry) for entry in _entries(spec)]


def _without_weight(entry: RewardEntry) -> RewardEntry:
    if not isinstance(entry, dict) or "weight" not in (entry.get("init_args") or {}):
        return entry
    if given_weight(entry, _resolve_class_path(entry)) is None:
        return entry
    return entry | {"init_args": {name: value for name, value in entry["init_args"].items() if name != "weight"}}


def _entries(spec: RewardEntry | Sequence[RewardEntry]) -> list[RewardEntry]:
    return list(spec) if isinstance(spec, Sequence) and not isinstance(spec, str) else [spec]


def parse_weights(weights: str | Sequence[float] | None) -> list[float] | None:
    """Numbers from ``"1.0,0.5"`` or a list; None stays None.

    Raises:
        ValueError: If something else stands there.
    """
    if weights is None:
        return None
    parts: Sequence[Any] = split_names(weights) if isinstance(weights, str) else weights
    try:
        return [float(part) for part in parts]
    except (TypeError, ValueError) as error:
        raise ValueError(f"model.reward_weights={weights!r} is not a list of numbers, for example 1.0,0.5.") from error


def _resolve_entry(entry: Any) -> list[BaseRewardFunction]:
    if isinstance(entry, str):
        return [_made(name, name, {}) for name in split_names(entry)]
    if isinstance(entry, BaseRewardFunction):
        if entry.name != UNNAMED:
            return [entry]
        renamed = copy.copy(entry)
        renamed.name = type(entry).__name__
        return [renamed]
    if isinstance(entry, dict):
        return [_resolve_class_path(entry)]
    if isinstance(entry, type) or not callable(entry):
        hint = " Give an instance, not the class." if isinstance(entry, type) else ""
        raise ValueError(f"model.rewards holds {entry!r}, which is neither a name, a reward nor a function.{hint}")
    return [FunctionReward(name=function_name(entry), function=entry)]


def _resolve_class_path(entry: dict[str, Any]) -> BaseRewardFunction:
    parts = class_path_of(entry)
    if parts is None:
        raise ValueError(f"model.rewards holds {entry!r}: a reward has the keys class_path and init_args.")
    path, settings = parts
    return _made(path if "." in path else _registered_name(path), path, settings)


def _made(name: str, path: str, settings: dict[str, Any]) -> BaseRewardFunction:
    """A reward by its registered name or import path; ``path`` is what errors call it."""
    if "." in name and name not in REWARD_FUNCTIONS:
        import_reward(name)  # a fault of the file's own keeps its traceback, and is not one of settings
    try:
        return get_reward_function(name, **settings)
    except TypeError as error:
        raise ValueError(
            f"model.rewards: {path} cannot be made with init_args={settings!r}: {error}.{_accepted(name)}"
        ) from error


def _accepted(name: str) -> str:
    """What a registered reward takes, for an error."""
    reward = REWARD_FUNCTIONS.get(name)
    return f" It takes {', '.join(inspect.signature(reward).parameters)}." if isinstance(reward, type) else ""


def _registered_name(path: str) -> str:
    """A registered name as it is; for the short name of a registered class, the name it is registered under."""
    by_class = {getattr(reward, "__name__", ""): name for name, reward in REWARD_FUNCTIONS.items()}
    return path if path in REWARD_FUNCTIONS else by_class.get(path, path)


def _with_unique_names(rewards: list[BaseRewardFunction]) -> list[BaseRewardFunction]:
    taken: set[str] = set()
    unique = []
    for reward in rewards:
        name, number = reward.name, 2
        while name in taken:
            name, number = f"{reward.name}_{number}", number + 1
        taken.add(name)
        unique.append(_changed(reward, name=name))
    return unique


def _with_weights(rewards: list[BaseRewardFunction], weights: list[float] | None) -> list[BaseRewardFunction]:
    if weights is None:
        return rewards
    if len(weights) != len(rewards):
        raise ValueError(
            f"Number of reward_weights ({len(weights)}) must match number of reward_funcs ({len(rewards)}): "
            f"{', '.join(reward.name for reward in rewards)}"
        )
    return [_changed(reward, weight=weight) for reward, weight in zip(rewards, weights, strict=True)]


def _changed(reward: BaseRewardFunction, **attributes: Any) -> BaseRewardFunction:
    """The reward itself where nothing changes, else a copy: the caller's object is not ours to write to."""
    if all(getattr(reward, key) == value for key, value in attributes.items()):
        return reward
    changed = copy.copy(reward)
    for key, value in attributes.items():
        setattr(changed, key, value)
    return changed
