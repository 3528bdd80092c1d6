"""What every source of rollouts is: it samples batches of prompts, keeps what a run needs to go on, and lets go of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from grpo_lightning.rewards import RewardState, RewardTable
from grpo_lightning.types import PromptBatch, Rollouts


@dataclass(frozen=True)
class Moment:
    """Where a run stands as it samples a batch."""

    step: int = 0
    """GRPO steps done; decides the seeds of completions."""
    updates: int = 0
    """Optimizer steps done."""
    max_updates: int = -1
    """Optimizer steps of the run; -1 where something else ends it."""
    epoch: float = 0.0
    run: RewardState = field(default_factory=RewardState)
    """What else rewards are told of the run."""


@dataclass(frozen=True)
class Sampled:
    """What a step trains on, its rewards perhaps still on their way."""

    batch: PromptBatch
    rollouts: Rollouts
    await_rewards: Callable[[], RewardTable]
    """Waits for the (N, R) rewards."""
    entries: dict[str, Tensor] = field(default_factory=dict)
    """Entries of further means for the log, by name."""


class Source(ABC):
    """What a step's completions come from."""

    key: ClassVar[str]
    """Its name in checkpoints."""
    inner: Source | None = None
    """The source that this one wraps; None where it samples itself."""

    @abstractmethod
    def sample(self, batch: PromptBatch, moment: Moment, stage: str = "train") -> Sampled:
        """Completions of the batch at the policy as it is now, or as the source says that it was.

        Args:
            batch: B prompts.
            moment: Decides, with the run's seed, the stage and each prompt, every sampled token.
            stage: Another one has other tokens.
        """

    def state_dict(self, step: int) -> dict[str, Any]:
        """What a run needs to go on exactly after ``step`` GRPO steps; called on every rank."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - nothing by default
        """Goes on from there."""

    def close(self, step: int) -> None:  # noqa: B027 - nothing by default
        """Releases what is held outside Python after ``step`` GRPO steps, also after an error."""
