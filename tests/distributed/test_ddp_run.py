"""Whole runs on several ranks: evaluation, checkpoints, resume on the same and on another number of ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from ranks import run_ranks
from runs import make_data, make_module, make_trainer, weights, write_prompts

from grpo_lightning.callbacks import BeforeAfterSummary

PROMPTS_PER_STEP, STEPS = 6, 4
RANKS = (1, 2, 3)


def fit(
    folder: Path, model_dir: Path, ranks: int, ckpt_path: Path | None = None, spoiled_rank: int | None = None
) -> dict[str, Any]:
    """Four steps with a checkpoint and an evaluation after each; one rank's second loss may be NaN."""
    module = make_module(
        model_dir,
        beta=0.05,
        sync_ref_model=True,
        ref_model_sync_steps=2,
        num_generations_eval=2,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    )
    steps: list[dict[str, float]] = []
    end_step, policy_loss = module.end_step, module.policy_loss

    def note(report: Any) -> None:
        end_step(report)
        steps.append(module.step_metrics)

    def spoil(*args: Any) -> torch.Tensor:
        is_spoiled = module.steps_done == 1 and module.global_rank == spoiled_rank
        return policy_loss(*args) * (float("nan") if is_spoiled else 1.0)

    module.end_step, module.policy_loss = note, spoil
    summary = BeforeAfterSummary(lenient="share_of_digits", strict="share_of_digits")
    checkpoints = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = make_trainer(
        folder,
        STEPS,
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        callbacks=[summary, checkpoints],
        enable_checkpointing=True,
        val_check_interval=1,
    )
    # Four prompts to evaluate on: of 3 ranks two have no batch of their own in some round.
    evaluation = write_prompts(folder / f"eval{trainer.global_rank}.jsonl", 4)
    data = make_data(
        folder.parent / "data", batch_size=PROMPTS_PER_STEP // ranks, eval_dataset=str(evaluation), eval_batch_size=1
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=False)
    validated = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    return {"steps": steps, "validated": validated, "weights": weights(module)}


def journey(folder: Path, model_dir: Path, ranks: int) -> dict[str, Any]:
    """A whole run, the same resumed after its second step, one resumed from two ranks' checkpoint, one gone wrong."""
    own, of_two = folder / f"ranks{ranks}", folder / "ranks2"
    return {
        "whole": fit(own, model_dir, ranks),
        "resumed": fit(folder / f"resumed{ranks}", model_dir, ranks, own / "step=2.ckpt"),
        "moved": fit(folder / f"moved{ranks}", model_dir, ranks, of_two / "step=2.ckpt"),
        "spoiled": fit(folder / f"spoiled{ranks}", model_dir, ranks, spoiled_rank=ranks - 1) if ranks > 1 else None,
    }


@pytest.fixture(scope="module")
def journeys(tiny_model_dir, tmp_path_factory) -> dict[int, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("journeys")
    for name in ("data", *(f"{kind}{n}" for n in RANKS for kind in ("ranks", "resumed", "moved", "spoiled"))):
        (folder / name).mkdir()
    return {count: run_ranks(count, journey, folder, tiny_model_dir, count) for count in (2, 1, 3)} | {0: [folder]}


def test_a_resumed_run_is_bit_for_bit_the_run_that_was_not_interrupted(journeys):
    for count in RANKS:
        for rank in journeys[count]:
            assert [step["loss"] for step in rank["resumed"]["steps"]] == [
                s["loss"] for s in rank["whole"]["steps"][2:]
            ]
            torch.testing.assert_close(rank["resumed"]["weights"], rank["whole"]["weights"], rtol=0, atol=0)


def test_a_run_of_two_ranks_is_continued_by_one_and_by_three(journeys):
    expected = journeys[2][0]["whole"]
    for count in (1, 3):
        moved = journeys[count][0]["moved"]
        assert [s["num_tokens"] for s in moved["steps"]] == [s["num_tokens"] for s in expected["steps"][2:]]
        torch.testing.assert_close(moved["weights"], expected["weights"], rtol=1e-4, atol=1e-6)


def test_evaluation_covers_the_same_prompts_on_any_number_of_ranks(journeys):
    alone = journeys[1][0]["whole"]["validated"]
    assert alone.keys() >= {"val/accuracy", "val/pass@2", "val/reward"}
    for count in (2, 3):
        for rank in journeys[count]:
            assert rank["whole"]["validated"] == pytest.approx(alone, rel=1e-5)
    summaries = [json.loads((journeys[0][0] / f"ranks{n}" / "summary.json").read_text()) for n in RANKS]
    assert summaries[0]["accuracy_before"] > 0
    assert all(s | {"seconds": 0} == summaries[0] | {"seconds": 0} for s in summaries)


def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_and_counted_on_all(journeys):
    for count in (2, 3):
        for rank in journeys[count]:
            spoiled = rank["spoiled"]
            # trainer.max_steps counts the four updates that were made.
            assert [step["skipped_updates"] for step in spoiled["steps"]] == [0.0, 1.0, 0.0, 0.0, 0.0]
            torch.testing.assert_close(spoiled["weights"], journeys[count][0]["spoiled"]["weights"], rtol=0, atol=0)
            assert all(torch.isfinite(weight).all() for weight in spoiled["weights"].values())
