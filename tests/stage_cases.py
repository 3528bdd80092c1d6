"""The stages besides GRPO with rows of theirs: what ``runs.train_stage`` takes first."""

from __future__ import annotations

from typing import Any

from grpo_lightning import DPOModule, RewardModelModule, SFTModule

PAIRS = [{"prompt": f"{i}+{i}=", "chosen": f"{2 * i}", "rejected": f"{2 * i}{i}0 so"} for i in range(6)]
TEXTS = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
STAGES: dict[str, tuple[Any, ...]] = {
    "sft": (SFTModule, "sft", TEXTS),
    "dpo": (DPOModule, "dpo", PAIRS),
    "reward model": (RewardModelModule, "dpo", PAIRS),
}
