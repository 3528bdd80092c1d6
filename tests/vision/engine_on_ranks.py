"""What two training ranks on this CPU that share a vLLM engine do on prompts with images, for test_vllm_images.py."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch.distributed as dist

from grpo_lightning import GRPODataModule
from grpo_lightning.rollouts.sampler_canary import MISMATCH
from grpo_lightning.types import PromptImages
from tests.runs import make_module, make_trainer
from tests.vision.test_image_runs import digits, picture_rows
from tests.vllm_cases import small_engine


def train(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Two steps of this rank, and what it has told the others."""
    told: list[tuple[int, int]] = []
    gather = dist.all_gather_object

    def gather_and_note(parts: list[Any], mine: Any, group: Any = None) -> None:
        gather(parts, mine, group=group)
        told.extend(_sizes(mine))

    dist.all_gather_object = gather_and_note
    module = make_module(
        checkpoint, vision_tower="frozen", rewards=[digits], generator=small_engine(tensor_parallel_size=2)
    )
    data = GRPODataModule(dataset=picture_rows(folder), batch_size=3)
    make_trainer(folder, max_steps=2, devices=2, strategy="ddp").fit(module, data)
    return {"told": told, "mismatch": float(module.step_metrics[MISMATCH]), "steps": module.steps_done}


def _sizes(told: Any) -> list[tuple[int, int]]:
    """Of each prompt with images that a rank tells others of: bytes of it, and of its pictures alone."""
    several = [each for part in told if isinstance(part, list) for each in part] if isinstance(told, list) else []
    shown = [each for each in several if isinstance(each, PromptImages) and each.images]
    return [(len(pickle.dumps(each)), sum(len(image.tobytes()) for image in each.images)) for each in shown]
