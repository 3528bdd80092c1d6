"""Applies the table to a config."""

from __future__ import annotations

from typing import Any

from grpo_lightning.migration.compose import COMPOSERS
from grpo_lightning.migration.migration import Migration
from grpo_lightning.migration.table import COMPOSED, IMPLIED, REFUSED, SAME, SEED_IMPLIED, SEED_KEYS


def migrate(settings: dict[str, Any], devices: int = 1, total_steps: int | None = None) -> Migration:
    """A config of TRL's or of the seeds', in our keys.

    Args:
        settings: Their flat keys.
        devices: Processes that the run was made for: TRL's generation_batch_size counts over all of them.
        total_steps: Optimizer steps of the run, for schedules that decay; by default max_steps.

    Returns:
        Every key of ``settings`` is in ``mapped`` or in ``refused``, or in both where only a part fits.
    """
    is_seed = bool(SEED_KEYS & settings.keys())
    defaults = IMPLIED | (SEED_IMPLIED if is_seed else {})
    migration = Migration({**defaults, **settings}, frozenset(settings), devices, total_steps)
    for key, value in migration.source.items():
        if key in SAME:
            if value is not None or key in settings:
                migration.put(SAME[key], value, key)
        elif key in REFUSED:
            migration.refuse(key, REFUSED[key])
        elif key not in COMPOSED:
            migration.refuse(key, "Unknown: no setting of TRL 1.16, nor of GRPOArguments. Check its spelling.")
    for compose in COMPOSERS:
        compose(migration)
    return migration
