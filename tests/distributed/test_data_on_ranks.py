"""Mixtures, pools and streams on two ranks: both draw from one order, and resume in it bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from ranks import run_ranks
from runs import make_data, make_module, make_trainer, weights, write_prompts

from grpo_lightning.datamodules.curriculum import Curriculum

STEPS = 6


def by_prompt(completions: list[str], ground_truth: list[str], **columns: Any) -> list[float]:
    """1 for every completion of one prompt, 0 for those of another, a digit's worth for the others."""
    digits = [float(any(c.isdigit() for c in text)) for text in completions]
    return [{"3": 1.0, "5": 0.0}.get(truth, one) for truth, one in zip(ground_truth, digits, strict=True)]


def fit(folder: Path, model_dir: Path, ranks: int, ckpt: Path | None = None, **data: Any) -> dict[str, Any]:
    """Six steps of four prompts; what this rank saw, its weights and its pools."""
    module = make_module(model_dir, rewards=[by_prompt])
    seen: list[list[int]] = []
    end_step = module.end_step

    def note(report: Any) -> None:
        seen.append(module.last_step.batch.uids)
        end_step(report)

    module.end_step = note
    save = ModelCheckpoint(folder / "checkpoints", every_n_train_steps=1, save_top_k=-1, filename="{step}")
    strategy = "ddp" if ranks > 1 else "auto"
    trainer = make_trainer(folder, STEPS, devices=ranks, strategy=strategy, callbacks=[save], enable_checkpointing=True)
    trainer.fit(module, datamodule=make_data(folder, batch_size=4 // ranks, **data), ckpt_path=ckpt, weights_only=True)
    sources = getattr(module.datamodule.order, "sources", [])
    pools = [(source.pool, source.turn) for source in sources if hasattr(source, "pool")]
    return {"seen": seen, "weights": weights(module), "pools": pools, "numbers": module.step_metrics}


def journey(folder: Path, model_dir: Path, ranks: int, data: dict[str, Any]) -> dict[str, Any]:
    own = folder / f"ranks{ranks}"
    whole = fit(own, model_dir, ranks, **data)
    return {"whole": whole, "resumed": fit(own / "on", model_dir, ranks, own / "checkpoints" / "step=3.ckpt", **data)}


@pytest.mark.parametrize("kind", ["curriculum", "mixture", "stream"])
def test_two_ranks_see_what_one_does_and_resume_bit_for_bit(kind: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    for ranks in (1, 2):
        (tmp_path / f"ranks{ranks}" / "on").mkdir(parents=True)
        for folder in (tmp_path / f"ranks{ranks}", tmp_path / f"ranks{ranks}" / "on"):
            write_prompts(folder / "train.jsonl")
    first, second = str(write_prompts(tmp_path / "a.jsonl")), str(write_prompts(tmp_path / "b.jsonl", 7))
    datasets = {"a": {"file_name": first, "weight": 2}, "b": {"file_name": second}}
    data = {
        "curriculum": {"dataset": first, "curriculum": Curriculum(0.1, 0.1)},
        "mixture": {"dataset": None, "datasets": datasets, "curriculum": Curriculum(0.25, 0.1)},
        "stream": {"dataset": first, "streaming": True, "shuffle_block": 5},
    }[kind]
    (alone,) = run_ranks(1, journey, tmp_path, tiny_model_dir, 1, data)
    pair = run_ranks(2, journey, tmp_path, tiny_model_dir, 2, data)
    joined = [one + other for one, other in zip(*(rank["whole"]["seen"] for rank in pair), strict=True)]
    assert joined == alone["whole"]["seen"] and len(joined) == STEPS
    for rank in (alone, *pair):
        whole, resumed = rank["whole"], rank["resumed"]
        assert resumed["seen"] == whole["seen"][3:]
        torch.testing.assert_close(resumed["weights"], whole["weights"], rtol=0, atol=0)
        torch.testing.assert_close(resumed["pools"], whole["pools"], rtol=0, atol=0)
        torch.testing.assert_close(whole["pools"], alone["whole"]["pools"], rtol=0, atol=0)
    if kind == "mixture":
        for name in ("data/a/share", "data/b/reward", "curriculum/open"):
            assert pair[0]["whole"]["numbers"][name] == pytest.approx(alone["whole"]["numbers"][name])
