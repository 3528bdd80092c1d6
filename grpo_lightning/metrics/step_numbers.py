"""The numbers of a step as they are logged, and the tokens counted over all steps."""

from __future__ import annotations

from typing import Any


class StepNumbers:
    """Completes a step's sums over ranks; remembers the tokens so far."""

    def __init__(self) -> None:
        self.num_tokens = 0
        """Prompt and completion tokens of all completions so far, over all ranks."""

    def complete(self, sums: dict[str, float], num_updates: int) -> dict[str, float]:
        """The numbers with their means over updates, all tokens so far, and the speed of the engine.

        Args:
            sums: Of the step, the same on every rank.
            num_updates: Optimizer steps of the GRPO step, over which its losses are averaged.
        """
        numbers = sums | {name: sums.get(name, 0.0) / num_updates for name in ("loss", "policy_loss")}
        self.num_tokens += int(numbers.pop("tokens/prompt_and_completion"))
        numbers["num_tokens"] = float(self.num_tokens)
        generating = numbers.get("time/generate", 0.0)
        at_other_times = {"sampling/staleness_steps", "sampling/age/mean"}  # sampled ahead, or begun in earlier steps
        if generating and at_other_times.isdisjoint(numbers):
            numbers["generation/tokens_per_second"] = numbers["tokens/completion"] / generating
        return numbers

    def state_dict(self) -> dict[str, Any]:
        """The count."""
        return {"num_tokens": self.num_tokens}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on counting from there."""
        self.num_tokens = state["num_tokens"]
