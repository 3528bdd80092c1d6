"""An engine that spans ranks is called on all of them, also where some have no prompts; otherwise all would wait."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks
from runs import make_data, make_module, make_trainer, weights, write_prompts
from shared_generator import SharedGenerator

from grpo_lightning.callbacks import BeforeAfterSummary
from grpo_lightning.rollouts.dynamic_sampling import DynamicSampling

STEPS = 3


def only_later_prompts(completions_ids, ground_truth, **columns):
    """Share of even tokens; equal inside the groups of the first three prompts of every step of six."""
    shares = [sum(token % 2 for token in ids) / len(ids) for ids in completions_ids]
    is_later = [int(answer) // 2 % 6 >= 3 for answer in ground_truth]
    return [share if later else 0.0 for later, share in zip(is_later, shares, strict=True)]


def refill(folder: Path, model_dir: Path, ranks: int) -> dict[str, Any]:
    """Steps in which ranks need different numbers of further prompts, some of them none."""
    generator = SharedGenerator()
    module = make_module(
        model_dir,
        generator=generator,
        rewards=[only_later_prompts],
        dynamic_sampling=DynamicSampling(mode="refill", max_rounds=3),
    )
    trainer = make_trainer(folder, STEPS, devices=ranks, strategy="ddp" if ranks > 1 else "auto")
    trainer.fit(module, datamodule=make_data(folder / "data", batch_size=6 // ranks, shuffle=False))
    return {"weights": weights(module), "calls": [counts for _, counts in generator.calls]}


def evaluate(folder: Path, model_dir: Path, ranks: int) -> dict[str, Any]:
    """Training with evaluation at several settings, then validate, test and predict, always on one prompt alone."""
    module = make_module(model_dir, generator=SharedGenerator(), num_generations_eval=2)
    callbacks = [BeforeAfterSummary(lenient="share_of_digits", strict="share_of_digits")]
    strategy = "ddp" if ranks > 1 else "auto"
    trainer = make_trainer(folder, 2, devices=ranks, strategy=strategy, callbacks=callbacks, val_check_interval=1)
    prompts = str(write_prompts(folder / f"one{trainer.global_rank}.jsonl", 1))
    data = make_data(folder / "data", batch_size=6 // ranks, eval_dataset={"first": prompts, "second": prompts})
    trainer.fit(module, datamodule=data)
    (validated, *_), (tested, *_) = trainer.validate(module, data), trainer.test(module, data)
    trainer.predict(module, data)
    return {"validated": validated, "tested": tested}


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_that_need_no_further_prompts_sample_beside_those_that_do(tiny_model_dir, tmp_path, ranks):
    (tmp_path / "data").mkdir()
    found = run_ranks(ranks, refill, tmp_path, tiny_model_dir, ranks)
    calls = found[0]["calls"]
    assert all(rank["calls"] == calls for rank in found)
    assert any(0 in counts and any(counts) for counts in calls)  # or nothing was tested
    assert all(any(counts) for counts in calls)  # a round that nobody needs is not run


def test_ranks_without_a_prompt_take_part_in_evaluation_test_and_prediction(tiny_model_dir, tmp_path):
    (tmp_path / "data").mkdir()
    (alone,) = run_ranks(1, evaluate, tmp_path, tiny_model_dir, 1)
    predicted = (tmp_path / "predictions.jsonl").read_text()
    assert len(predicted.splitlines()) == 8  # four completions of a prompt of each dataset
    for rank in run_ranks(2, evaluate, tmp_path, tiny_model_dir, 2):
        for stage in ("validated", "tested"):
            assert rank[stage] == pytest.approx(alone[stage], rel=1e-5)
    parts = [(tmp_path / f"predictions{suffix}.jsonl").read_text() for suffix in ("", ".rank1")]
    found = [json.loads(line)["uid"] for part in parts for line in part.splitlines()]
    assert found == [0] * 8
