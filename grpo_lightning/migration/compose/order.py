"""Which rows come when, in trainers that have transformers' own sampler."""

from __future__ import annotations

from grpo_lightning.migration.migration import Migration
from grpo_lightning.migration.refused import REFUSED


def compose_order(m: Migration) -> None:
    """A new order in each epoch unless train_sampling_strategy says otherwise, and what becomes of an epoch's last rows."""
    key, strategy = "train_sampling_strategy", m.get("train_sampling_strategy", "random")
    if strategy == "sequential":
        m.put("data.shuffle", False, key)
    elif strategy == "random":
        m.needs_nothing(key)
    else:
        m.refuse(key, "data.shuffle: rows in a new order each epoch, or in the dataset's.")
    if not m.get("dataloader_drop_last"):
        m.say("dataloader_drop_last", REFUSED["dataloader_drop_last"])
    m.needs_nothing("dataloader_drop_last")
