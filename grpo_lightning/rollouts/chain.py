"""A source of rollouts with the sources that it wraps: saved, restored and closed together, the outermost first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from grpo_lightning.rollouts.base import Source


@dataclass(frozen=True)
class Chain:
    """Where a source and what it wraps stand between two steps."""

    source: Source
    step: int
    """GRPO steps done."""

    def links(self) -> list[Source]:
        """The source, what it wraps, and so on."""
        chain = [self.source]
        while (inner := chain[-1].inner) is not None:
            chain.append(inner)
        return chain

    def state_dict(self) -> dict[str, Any]:
        """The state of each, by name; called on every rank."""
        return {each.key: each.state_dict(self.step) for each in self.links()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restores the state of each that was saved; what no part of this run goes on with is said."""
        links = self.links()
        for each in links:
            if each.key in saved:
                each.load_state_dict(saved[each.key])
        keys = {each.key for each in links}
        if saved.get("async_rollouts", {}).get("parts") and "async_rollouts" not in keys:
            rank_zero_warn(
                "The checkpoint holds the next step's batch, which model.async_rollouts=0 leaves out: the next step samples "
                "its own."
            )
        lost = sum(map(len, saved.get("partial_rollouts", {}).get("ranks", [])))
        if lost and "partial_rollouts" not in keys:
            rank_zero_warn(
                f"model.partial_rollouts.carry_over=0 leaves {lost} carried groups out that the checkpoint holds: their prompts "
                "are not trained on in this epoch."
            )

    def close(self) -> None:
        """Releases what each holds outside Python: the next batch before the engine that samples it."""
        for each in self.links():
            each.close(self.step)
