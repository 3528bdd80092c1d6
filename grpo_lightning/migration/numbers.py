"""Settings of TRL's that are numbers, checked before anything is computed with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NUMBERS = frozenset(
    [
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "beta",
        "distillation_alpha",
        "distillation_is_clip",
        "distillation_topk",
        "distillation_weight",
        "generation_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "loss_top_k",
        "max_completion_length",
        "max_length",
        "max_new_tokens",
        "max_prompt_length",
        "max_steps",
        "min_p",
        "num_generations",
        "num_generations_eval",
        "num_iterations",
        "num_machines",
        "num_processes",
        "num_train_epochs",
        "per_device_eval_batch_size",
        "per_device_train_batch_size",
        "save_steps",
        "save_total_limit",
        "steps_per_generation",
        "success_reward_threshold",
        "teacher_sync_steps",
        "teacher_update_rate",
        "temperature",
        "top_k",
        "top_p",
        "warmup_ratio",
        "warmup_steps",
        "weight_decay",
    ]
)
"""Under the names of TRL 1.16; others are written out as they are, and checked where they are used."""


def check_numbers(settings: Mapping[str, Any]) -> None:
    """Refuses text that is no number.

    Raises:
        ValueError: Naming the setting.
    """
    for key in sorted(NUMBERS & settings.keys()):
        value = settings[key]
        try:
            if value is not None:
                float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{key}={value!r} is no number. Give one, or leave it out for TRL's default.") from None


def processes_of(settings: Mapping[str, Any], devices: int | None) -> int:
    """How many processes a run was made for: ``devices``, else what its settings say, else 1.

    Raises:
        ValueError: If torchrun was to count them, as by ``--nproc_per_node gpu``.

    Example:
        >>> processes_of({"num_processes": 4}, None), processes_of({"nproc_per_node": "gpu"}, 8), processes_of({}, None)
        (4, 8, 1)
    """
    given = devices or settings.get("num_processes") or settings.get("nproc_per_node") or 1
    try:
        return int(given)
    except (TypeError, ValueError):
        raise ValueError(
            f"nproc_per_node={given!r} is no number: torchrun counts what the machine has. Say with --devices N how many the "
            "run was made for."
        ) from None
