"""What one step tells about itself: times of its phases and metrics as sums, read once at its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from grpo_lightning.algorithm.metric_sums import MetricSums, mean_of
from grpo_lightning.messages import StopReason
from grpo_lightning.rewards import RewardTable
from grpo_lightning.types import Conversation, PromptBatch, Rollouts

SPREAD = ("sampling/staleness_steps", "sampling/staleness_updates")


class StepReport:
    """Collects while a step runs; tensors stay where they are until ``MetricSums.result``.

    Args:
        on_phase: Called with the name of each phase as it begins.
    """

    def __init__(self, on_phase: Callable[[str], None] = lambda name: None) -> None:
        self._on_phase = on_phase
        self.metrics = MetricSums()
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the wall time of the block to ``time/<name>``."""
        self._on_phase(name)
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def add(self, metrics: MetricSums) -> None:
        """Adds sums of a micro-batch, of the rewards, ..."""
        self.metrics = self.metrics + metrics

    def add_mean(self, name: str, values: Tensor) -> None:
        """Adds the entries of ``values`` to the mean called ``name``; NaN entries do not count."""
        self.add(MetricSums(means={name: mean_of(values)}))

    def add_entries(self, entries: dict[str, Tensor]) -> None:
        """Adds the entries of several means, by name; of those in ``SPREAD`` percentiles and the largest are told too."""
        for name, values in entries.items():
            self.add_mean(name, values)
            if name in SPREAD and len(values):
                spread = values.double()
                self.add(MetricSums(maxima={f"{name}_max": spread.max()}, samples={name: spread}))

    def add_update(self, grad_norm: Tensor) -> None:
        """Adds an optimizer step; a gradient that is not finite was skipped."""
        finite = torch.isfinite(grad_norm)
        norm = torch.stack([torch.where(finite, grad_norm, 0.0).double(), finite.double()])
        self.add(MetricSums(means={"grad_norm": norm}, maxima={"skipped_updates": (~finite).double()}))

    def add_rollouts(self, rollouts: Rollouts) -> None:
        """Adds lengths, tokens and the share of completions that were cut off; lengths count the policy's tokens."""
        lengths, truncated = rollouts.policy_lengths().double(), rollouts.truncated
        self.add_entries(turn_counts(rollouts.conversations))
        is_played = lengths > 0  # False where an environment failed
        lengths, truncated = lengths[is_played], truncated[is_played]
        self.add_mean("completions/mean_length", lengths)
        self.add_mean("completions/mean_terminated_length", lengths.masked_fill(truncated, torch.nan))
        self.add_mean("completions/clipped_ratio", truncated.double())
        infinity = torch.tensor(torch.inf, dtype=torch.float64)
        ended = lengths[~truncated]
        self.add(
            MetricSums(
                totals={
                    "tokens/completion": lengths.sum(),
                    "tokens/prompt_and_completion": (
                        rollouts.completion_lengths.sum() + rollouts.prompt_lengths[rollouts.group].sum()
                    ).double(),
                },
                minima={
                    "completions/min_length": lengths.min() if len(lengths) else infinity,
                    "completions/min_terminated_length": ended.min() if len(ended) else infinity,
                },
                maxima={
                    "completions/max_length": lengths.max() if len(lengths) else -infinity,
                    "completions/max_terminated_length": ended.max() if len(ended) else -infinity,
                },
                samples={"completions/length": lengths},
            )
        )

    def add_peak_memory(self, size: int) -> None:
        """Adds the most bytes that were in use on the device since training began, as ``memory/peak_gib``."""
        self.add(MetricSums(maxima={"memory/peak_gib": torch.tensor(size / 2**30, dtype=torch.float64)}))

    def close(self) -> MetricSums:
        """All metrics, with ``time/<phase>`` and ``step_time`` in seconds: over ranks, the slowest counts."""
        times = {f"time/{name}": seconds for name, seconds in self.seconds.items()}
        times["step_time"] = time.perf_counter() - self._started
        return self.metrics + MetricSums(
            maxima={name: torch.tensor(seconds, dtype=torch.float64) for name, seconds in times.items()}
        )


STOPS: tuple[str, ...] = get_args(StopReason)


def turn_counts(conversations: Sequence[Conversation]) -> dict[str, Tensor]:
    """Entries of the means that are logged of them; empty for rollouts of one turn."""
    if not conversations:
        return {}
    kept = [each for each in conversations if not each.is_fault]
    calls = sum(each.calls for each in kept)
    entries = {f"rollouts/stop/{stop}": [float(each.stop == stop) for each in conversations] for stop in STOPS}
    entries |= {
        "rollouts/turns": [float(each.turns) for each in kept],
        "rollouts/histories": [float(max(1, len(each.branches))) for each in kept],
        "tools/call_frequency": [float(each.calls) for each in kept],
        "tools/failure_frequency": [sum(each.mistakes for each in kept) / calls] if calls else [],
    }
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in entries.items()}


@dataclass(frozen=True)
class StepRecord:
    """The prompts, completions, rewards and advantages of this rank's last step; replaced by the next one.

    Nothing in training reads it: callbacks do, in ``on_train_batch_end``.
    """

    batch: PromptBatch
    """B prompts."""
    rollouts: Rollouts
    """N completions of them."""
    rewards: RewardTable
    """(N, R) scores of this rank."""
    advantages: Tensor
    """(N,) float32."""


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
