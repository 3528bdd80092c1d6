"""Ranks carry groups over each for itself, train on the same weights, and resume on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from ranks import run_ranks
from runs import make_data, make_module, make_trainer, weights, write_prompts
from vllm_cases import TOKENIZER, ending_model

from grpo_lightning.rollouts.partial_rollouts import PartialRollouts

PROMPTS_PER_STEP, STEPS, EARLY = 8, 4, "step=2.ckpt"


class Recorder(L.Callback):
    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        record, numbers = pl_module.last_step, pl_module.step_metrics
        self.steps.append(
            {
                "uids": record.batch.uids,
                "completions": [ids.tolist() for ids in record.rollouts.completions()],
                "carried": [group.uid for group in pl_module.noted.inner._carried],
                "numbers": {name: numbers[name] for name in ("loss", "num_tokens", "sampling/age/mean")},
            }
        )


def fit(folder: Path, model_dir: Path, ranks: int, ckpt_path: Path | None = None) -> dict[str, Any]:
    recorder = Recorder()
    module = make_module(
        model_dir,
        partial_rollouts=PartialRollouts(carry_over=0.5),
        max_completion_length=24,
        max_sampler_mismatch=None,
    )
    trainer = make_trainer(
        folder,
        STEPS,
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        callbacks=[recorder, ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)],
        enable_checkpointing=True,
    )
    prompts = write_prompts(folder.parent / f"data{trainer.global_rank}.jsonl", 32)
    trainer.fit(
        module,
        datamodule=make_data(folder.parent, batch_size=PROMPTS_PER_STEP // ranks, dataset=str(prompts)),
        ckpt_path=ckpt_path,
        weights_only=False,
    )
    return {"steps": recorder.steps, "weights": weights(module)}


def two(folder: Path, model_dir: Path) -> dict[str, Any]:
    whole = fit(folder / "whole", model_dir, 2)
    return {"whole": whole, "resumed": fit(folder / "resumed", model_dir, 2, folder / "whole" / EARLY)}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ending")
    ending_model().save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("partial")
    for name in ("whole", "resumed", "moved"):
        (folder / name).mkdir()
    return folder


@pytest.fixture(scope="module")
def ranks(model_dir, folder) -> list[dict[str, Any]]:
    return run_ranks(2, two, folder, model_dir)


def test_ranks_train_the_same_weights_on_groups_of_their_own(ranks):
    first, second = (rank["whole"] for rank in ranks)
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)
    assert [step["numbers"] for step in first["steps"]] == [step["numbers"] for step in second["steps"]]
    for rank in (first, second):
        assert [len(step["uids"]) for step in rank["steps"]] == [2, 4, 4, 4]
        assert [len(step["carried"]) for step in rank["steps"]] == [2] * 4
    seen = [uid for rank in (first, second) for step in rank["steps"] for uid in step["uids"]]
    left = [uid for rank in (first, second) for uid in rank["steps"][-1]["carried"]]
    assert sorted(seen + left) == list(range(32))


def test_a_resumed_run_is_bit_for_bit_the_run_that_was_not_interrupted(ranks):
    for rank in ranks:
        assert rank["resumed"]["steps"] == rank["whole"]["steps"][2:]
        torch.testing.assert_close(rank["resumed"]["weights"], rank["whole"]["weights"], rtol=0, atol=0)


def test_one_rank_goes_on_with_what_two_had_carried(ranks, folder, model_dir):
    moved = fit(folder / "moved", model_dir, 1, folder / "whole" / EARLY)
    carried = {uid for rank in ranks for uid in rank["whole"]["steps"][1]["carried"]}
    assert [len(step["uids"]) for step in moved["steps"]] == [8, 8]
    assert len(carried) == 4 and carried <= {uid for step in moved["steps"] for uid in step["uids"]}
