"""Settings that earlier versions took, and nothing used: checkpoints that hold them are loaded without."""

from __future__ import annotations

from typing import Any

from grpo_lightning.rewards.resolve import without_weights

OF_SAMPLES = ("temperature_eval", "top_p_eval")
"""Of completions that are sampled from held-out prompts, of which there are none with ``num_generations_eval: 0``."""


def still_used(saved: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a checkpoint without those that had no effect on its run, and are refused by now.

    What the caller gives is not looked at: a setting without effect is refused there, as anywhere.

    Args:
        saved: In the checkpoint, by name.
        given: By the caller, in the place of them.

    Example:
        >>> still_used({"temperature_eval": 0.5, "beta": 0.1}, {})
        {'beta': 0.1}
        >>> still_used({"temperature_eval": 0.5}, {"num_generations_eval": 4})
        {'temperature_eval': 0.5}
    """
    kept, wanted = dict(saved), saved | given
    if not wanted.get("num_generations_eval"):
        kept = {name: value for name, value in kept.items() if name not in OF_SAMPLES}
    for name, weights_are_unused in (("eval_rewards", True), ("rewards", wanted.get("reward_weights") is not None)):
        if weights_are_unused and kept.get(name) and name not in given:
            kept[name] = without_weights(kept[name])
    return kept
