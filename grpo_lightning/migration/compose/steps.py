"""Optimizer steps, which TRL counts everything in, and GRPO steps, which Lightning's batches are; completions per device
and accumulation step -> prompts per device and GRPO step.
"""

from __future__ import annotations

import math

from grpo_lightning.migration.migration import Migration

TOTAL = "give --total_steps, or max_steps"


def updates(m: Migration) -> int:
    """Optimizer steps of a GRPO step, once the batches are composed."""
    return int(m.config.get("model.num_minibatches", 1)) * int(m.get("num_iterations") or 1)


def total_steps(m: Migration) -> int | None:
    """Optimizer steps of the run; None where only the data tells."""
    if m.total_steps:
        return m.total_steps
    return int(m.get("max_steps")) if (m.get("max_steps") or -1) > 0 else None


def in_steps(m: Migration, value: float) -> int | None:
    """A number of optimizer steps, or below 1 a share of the run, rounded up as in transformers; None if not known."""
    if value >= 1:
        return int(value)
    total = total_steps(m)
    return max(1, math.ceil(total * value)) if total else None


def in_grpo_steps(m: Migration, key: str, steps: int, what: str) -> int:
    """Optimizer steps as GRPO steps, rounded up; where they do not divide, that is said."""
    every = -(-steps // updates(m))
    if every * updates(m) != steps:
        m.say(
            key,
            f"{steps} optimizer steps are no whole number of GRPO steps, each of which takes {updates(m)}: {what} "
            f"every {every * updates(m)} instead.",
        )
    return every


PER_DEVICE, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
KEYS = (PER_DEVICE, ACCUMULATION, "generation_batch_size", "steps_per_generation")


def compose_batches(m: Migration) -> None:
    """Prompts of a step, and optimizer steps on them.

    TRL generates per_device_train_batch_size * steps_per_generation completions per device at a time and takes
    steps_per_generation / gradient_accumulation_steps optimizer steps on them. With fewer than one, several
    generations of the same policy make one optimizer step: for us they are one step.
    """
    per_device, accumulation = int(m.get(PER_DEVICE, 8)), int(m.get(ACCUMULATION) or 1)
    generations = int(m.get("num_generations") or 8)
    per_generation = m.get("steps_per_generation") or accumulation
    if m.get("generation_batch_size"):
        per_generation = m.get("generation_batch_size") / (per_device * m.devices)
    completions = per_device * max(per_generation, accumulation)
    if m.counts_prompts:
        completions = per_device * accumulation * generations
    prompts = max(1, round(completions / generations))
    m.put("data.batch_size", prompts, *KEYS)
    if prompts * generations != completions:
        m.say(
            PER_DEVICE,
            f"{completions / generations:g} prompts per device and step do not fit: groups stay on one device here. "
            f"Written: data.batch_size {prompts}, so that a step has {prompts * generations * m.devices} completions "
            f"instead of {completions * m.devices:g}.",
        )
    _put_minibatches(m, per_generation / accumulation, prompts)
    _put_evaluation(m, generations)


def _put_minibatches(m: Migration, updates: float, prompts: int) -> None:
    if updates <= 1:
        return
    minibatches = min(round(updates), prompts)
    m.put("model.num_minibatches", minibatches, *KEYS[1:])
    if minibatches != updates:
        key = next((key for key in reversed(KEYS) if m.has(key)), PER_DEVICE)
        m.say(
            key,
            f"{updates:g} optimizer steps on {prompts} prompts per device do not fit: each takes whole groups here. "
            f"Written: model.num_minibatches {minibatches}.",
        )


def _put_evaluation(m: Migration, generations: int) -> None:
    if m.get("per_device_eval_batch_size"):
        each = int(m.get("num_generations_eval") or generations)
        completions = int(m.get("per_device_eval_batch_size"))
        m.put("data.eval_batch_size", max(1, completions // each), "per_device_eval_batch_size")
