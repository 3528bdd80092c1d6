"""What rewards remember between calls: kept in checkpoints of those that can tell it, and said of those that cannot."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from grpo_lightning.distributed.checkpoint_values import NotStorableError, stored_exactly
from grpo_lightning.distributed.gather import gather_objects, own_rank
from grpo_lightning.rewards.base import BaseRewardFunction, RewardContractError, written

log = logging.getLogger(__name__)


class KeptState:
    """The state of rewards that have ``state_dict`` and ``load_state_dict``, on this rank and in checkpoints.

    Args:
        rewards: With unique names.
    """

    def __init__(self, rewards: Sequence[BaseRewardFunction]) -> None:
        self._keepers = {reward.name: written(reward) for reward in rewards if keeps_state(reward)}
        others = {reward.name: written(reward) for reward in rewards if not keeps_state(reward)}
        self._others = {name: own for name, own in others.items() if not _is_ours(own)}
        self._before: tuple[int, dict[str, Any]] = (-1, {})
        """The step that was begun last, and the state until then: of a step that fails, a checkpoint holds that."""
        self._at_start = {name: _plain(own) for name, own in self._others.items()}

    @property
    def is_kept(self) -> bool:
        """Whether any reward has state for checkpoints: its values then depend on the order of calls."""
        return bool(self._keepers)

    def state_dict(self) -> dict[str, Any]:
        """By name of reward, a copy.

        Raises:
            RewardContractError: If a checkpoint cannot hold what a reward gives.
        """
        return {name: _stored(name, keeper.state_dict()) for name, keeper in self._keepers.items()}

    def begin_step(self, step: int) -> None:
        """Notes the state before any completion of the step is scored; ``step`` are done."""
        self._before = (step, self.state_dict())

    def of_all_ranks(self, step: int) -> list[dict[str, Any]]:
        """The states of each rank after ``step`` steps; called on every one. Says once which rewards remember what no checkpoint holds."""
        self._say_lost()
        began, before = self._before
        return gather_objects(before if began == step else self.state_dict()) if self._keepers else []

    def restore(self, ranks: Sequence[dict[str, Any]]) -> None:
        """Gives each reward what it had on this rank; where there were other ranks, on the first."""
        self._before = (-1, {})
        if not self._keepers:
            return
        rank, size = own_rank()
        saved = ranks[rank if len(ranks) == size else 0] if ranks else {}
        for name, keeper in self._keepers.items():
            if name in saved:
                keeper.load_state_dict(copy.deepcopy(saved[name]))
            else:
                log.warning(
                    "The checkpoint has no state of the reward '%s', which starts with what it is made with.", name
                )

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """Afterwards the rewards remember what they do now, whatever they are called with meanwhile."""
        before = self.state_dict()
        try:
            yield
        finally:
            for name, keeper in self._keepers.items():
                keeper.load_state_dict(before[name])

    def _say_lost(self) -> None:
        for name, own in list(self._others.items()):
            now, before = _plain(own), self._at_start[name]
            if changed := sorted(key for key in now if now[key] != before.get(key)):
                del self._others[name]  # said once
                log.warning(
                    "The reward '%s' remembers from call to call (%s), and no checkpoint holds that: a resumed run starts with what "
                    "it is made with. Where its values depend on it, give the class state_dict() and load_state_dict(state).",
                    *(name, ", ".join(changed)),
                )


def keeps_state(reward: BaseRewardFunction) -> bool:
    """Whether it tells what it remembers. A model's weights are no state: they stay as they are, and would fill every checkpoint."""
    own = written(reward)
    has_both = all(callable(getattr(own, name, None)) for name in ("state_dict", "load_state_dict"))
    return has_both and not isinstance(own, nn.Module)


def _is_ours(own: Any) -> bool:
    return type(own).__module__.partition(".")[0] == "grpo_lightning"


def _plain(own: Any) -> dict[str, Any]:
    """Attributes that are plain values, and the lengths of lists and mappings."""
    values = getattr(own, "__dict__", {})
    plain = {name: value for name, value in values.items() if isinstance(value, bool | int | float | str | None)}
    return plain | {name: len(value) for name, value in values.items() if isinstance(value, list | dict | set)}


def _stored(name: str, state: Any) -> Any:
    try:
        return stored_exactly(state)
    except NotStorableError as error:
        raise RewardContractError(
            f"Reward '{name}': its state_dict() gives what a checkpoint cannot hold ({error}). Give numbers, texts, tensors, and "
            "lists and dictionaries of these."
        ) from error
