"""Prompts with images on two ranks under DDP over gloo: each rank has images of its own, and both take the steps of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from ranks import run_ranks
from runs import make_module, make_trainer, weights
from vision.test_image_runs import digits, picture_rows
from vision.toy_checkpoint import save_toy_checkpoint

from grpo_lightning import GRPODataModule
from grpo_lightning.generation import TransformersGenerator

STEPS, PROMPTS_PER_STEP = 3, 2
SETTINGS: dict[str, dict[str, Any]] = {
    "frozen": {"vision_tower": "frozen"},
    "trained": {"vision_tower": "trained", "beta": 0.1},
    "lora": {"vision_tower": "frozen", "finetuning_type": "lora", "lora_target": "q_proj,v_proj", "lora_dropout": 0.0},
}


class Recorder(L.Callback):
    """What each step of this rank was about."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        record, metrics = pl_module.last_step, pl_module.step_metrics
        completions = [ids.tolist() for ids in record.rollouts.completions()]
        shown = [len(images.images) for images in record.rollouts.images]
        mismatch = metrics.get("sampling/sampling_logp_difference/mean", 0.0)  # none of a step without a lesson
        kept = {"uids": record.batch.uids, "completions": completions, "shown": shown, "mismatch": mismatch}
        self.steps.append(kept | {name: metrics[name] for name in ("loss", "num_tokens")})


def fit(folder: Path, checkpoint: Path, ranks: int, kind: str) -> dict[str, Any]:
    """Three steps over prompts with one image, two and none."""
    recorder = Recorder()
    one_prompt = TransformersGenerator(max_batch_size=4)  # at a time: rounding is then that of the weights alone
    sgd = {"optimizer": lambda w: torch.optim.SGD(w, lr=0.1)}
    module = make_module(checkpoint, rewards=[digits], generator=one_prompt, **sgd, **SETTINGS[kind])
    strategy = "ddp" if ranks > 1 else "auto"
    trainer = make_trainer(folder, STEPS, devices=ranks, strategy=strategy, callbacks=[recorder])
    rows = picture_rows(folder / f"{kind}{ranks}-{trainer.global_rank}")
    # Of two ranks, the second one's prompt of the last step has no image, and its tower nothing to do.
    data = GRPODataModule(dataset=rows, batch_size=PROMPTS_PER_STEP // ranks, shuffle=False)
    trainer.fit(module, data)
    return {"steps": recorder.steps, "weights": weights(module)}


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("family", ["llava", "idefics3"])
def test_two_ranks_with_images_take_the_steps_of_one(tmp_path: Path, family: str, kind: str):
    for name in (f"{kind}1-0", f"{kind}2-0", f"{kind}2-1"):
        (tmp_path / name).mkdir()
    checkpoint = save_toy_checkpoint(family, tmp_path / family)
    [alone] = run_ranks(1, fit, tmp_path, checkpoint, 1, kind)
    both = run_ranks(2, fit, tmp_path, checkpoint, 2, kind)
    for step, expected in enumerate(alone["steps"]):
        found = [rank["steps"][step] for rank in both]
        by_prompt = {
            uid: (shown, rank["completions"][4 * b : 4 * b + 4])
            for rank in found
            for b, (uid, shown) in enumerate(zip(rank["uids"], rank["shown"], strict=True))
        }
        for b, uid in enumerate(expected["uids"]):
            shown, completions = by_prompt.pop(uid)
            assert shown == expected["shown"][b]
            # From the second step on weights differ by rounding, and a near tie may fall either way.
            assert step or completions == expected["completions"][4 * b : 4 * b + 4]
        assert by_prompt == {}
        for rank in found:
            assert rank["mismatch"] < 1e-5
            assert rank["num_tokens"] == expected["num_tokens"]
            assert rank["loss"] == pytest.approx(expected["loss"], rel=1e-4, abs=1e-6)
    assert {count for rank in both for step in rank["steps"] for count in step["shown"]} == {0, 1, 2}
    start = run_ranks(1, start_weights, checkpoint, kind)[0]
    moved = {name for name, weight in alone["weights"].items() if not weight.equal(start[name])}
    assert moved and any("vision" in name for name in moved) == (kind == "trained")
    for rank in both:
        torch.testing.assert_close(rank["weights"], alone["weights"], rtol=1e-3, atol=1e-5)


def start_weights(checkpoint: Path, kind: str) -> dict[str, torch.Tensor]:
    """What training starts from."""
    module = make_module(checkpoint, rewards=[digits], **SETTINGS[kind])
    module.policy.load()
    return weights(module)
