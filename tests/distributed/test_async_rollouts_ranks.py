"""Every rank has a next batch of its own; what a checkpoint holds of them continues on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from async_copy_generator import AsyncCopyGenerator
from lightning.pytorch.callbacks import ModelCheckpoint
from ranks import run_ranks
from runs import make_data, make_module, make_trainer, weights

from grpo_lightning.distributed.sharding import whole

PROMPTS_PER_STEP, STEPS, EARLY = 6, 4, "step=2.ckpt"


class Recorder(L.Callback):
    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        record = pl_module.last_step
        completions = [ids.tolist() for ids in record.rollouts.completions()]
        metrics = {name: pl_module.step_metrics[name] for name in ("loss", "num_tokens", "sampling/staleness_steps")}
        self.steps.append({"uids": record.batch.uids, "completions": completions, **metrics})


def fit(
    folder: Path, model_dir: Path, ranks: int, ckpt_path: Path | None = None, strategy: str = "ddp"
) -> dict[str, Any]:
    """Four steps of two epochs with a checkpoint after each."""
    recorder = Recorder()
    module = make_module(model_dir, async_rollouts=1, generator=AsyncCopyGenerator(), max_sampler_mismatch=None)
    trainer = make_trainer(
        folder,
        STEPS,
        devices=ranks,
        strategy=strategy if ranks > 1 else "auto",
        callbacks=[recorder, ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)],
        enable_checkpointing=True,
    )
    data = make_data(folder.parent / "data", batch_size=PROMPTS_PER_STEP // ranks)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=False)
    return {"steps": recorder.steps, "weights": {name: whole(tensor) for name, tensor in weights(module).items()}}


def journey(folder: Path, model_dir: Path, ranks: int) -> dict[str, Any]:
    """A whole run, the same resumed after its second step, and one resumed from two ranks' checkpoint."""
    return {
        "whole": fit(folder / f"whole{ranks}", model_dir, ranks),
        "resumed": fit(folder / f"resumed{ranks}", model_dir, ranks, folder / f"whole{ranks}" / EARLY),
        "moved": fit(folder / f"moved{ranks}", model_dir, ranks, folder / "whole2" / EARLY),
    }


@pytest.fixture(scope="module")
def journeys(tiny_model_dir, tmp_path_factory) -> dict[int, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("journeys")
    for name in ("data", *(f"{kind}{n}" for n in (1, 2) for kind in ("whole", "resumed", "moved"))):
        (folder / name).mkdir()
    return {count: run_ranks(count, journey, folder, tiny_model_dir, count) for count in (2, 1)}


def of_all_ranks(ranks: list[dict[str, Any]], run: str, what: str) -> list[list[Any]]:
    return [
        [entry for step in steps for entry in step[what]]
        for steps in zip(*(r[run]["steps"] for r in ranks), strict=True)
    ]


def test_two_ranks_sample_ahead_what_one_does(journeys):
    alone, two = journeys[1], journeys[2]
    assert of_all_ranks(two, "whole", "uids") == of_all_ranks(alone, "whole", "uids")
    assert of_all_ranks(two, "whole", "completions")[:2] == of_all_ranks(alone, "whole", "completions")[:2]
    assert [step["sampling/staleness_steps"] for step in two[1]["whole"]["steps"]] == [0.0, 1.0, 1.0, 1.0]
    torch.testing.assert_close(two[0]["whole"]["weights"], two[1]["whole"]["weights"], rtol=0, atol=0)
    torch.testing.assert_close(two[0]["whole"]["weights"], alone[0]["whole"]["weights"], rtol=1e-4, atol=1e-6)


def test_a_resumed_run_is_bit_for_bit_the_run_that_was_not_interrupted(journeys):
    for ranks in journeys.values():
        for rank in ranks:
            assert rank["resumed"]["steps"] == rank["whole"]["steps"][2:]
            torch.testing.assert_close(rank["resumed"]["weights"], rank["whole"]["weights"], rtol=0, atol=0)


def test_the_next_batch_of_two_ranks_is_trained_on_by_one(journeys):
    expected = of_all_ranks(journeys[2], "whole", "completions")[2]
    assert of_all_ranks(journeys[1], "moved", "completions")[0] == expected
    assert journeys[1][0]["moved"]["steps"][0]["sampling/staleness_steps"] == 1.0
    torch.testing.assert_close(
        journeys[1][0]["moved"]["weights"], journeys[2][0]["whole"]["weights"], rtol=1e-4, atol=1e-6
    )


def sharded(folder: Path, model_dir: Path) -> dict[str, Any]:
    ahead = fit(folder / "whole", model_dir, 2, strategy="fsdp2")
    return {"whole": ahead, "resumed": fit(folder / "resumed", model_dir, 2, folder / "whole" / EARLY, "fsdp2")}


def test_sharded_ranks_sample_ahead_and_resume(journeys, tiny_model_dir, tmp_path):
    for name in ("data", "whole", "resumed"):
        (tmp_path / name).mkdir()
    for rank, of_ddp in zip(run_ranks(2, sharded, tmp_path, tiny_model_dir), journeys[2], strict=True):
        assert rank["resumed"]["steps"] == rank["whole"]["steps"][2:]
        torch.testing.assert_close(rank["resumed"]["weights"], rank["whole"]["weights"], rtol=0, atol=0)
        assert [s["uids"] for s in rank["whole"]["steps"]] == [s["uids"] for s in of_ddp["whole"]["steps"]]
        torch.testing.assert_close(rank["whole"]["weights"], of_ddp["whole"]["weights"], rtol=1e-4, atol=1e-6)
