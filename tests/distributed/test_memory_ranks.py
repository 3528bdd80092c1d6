"""Ranks whose devices differ agree on the size of micro-batches, and none waits for one that ran out of memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from copy_generator import CopyGenerator
from memory_device import SavedTensors
from ranks import run_ranks
from runs import make_data, make_module, make_trainer
from toy_models import save_toy_model

from grpo_lightning.distributed.sharding import whole
from grpo_lightning.distributed.strategies import FSDP2Strategy
from grpo_lightning.memory import budget as memory_budget
from grpo_lightning.memory import rehearsal
from grpo_lightning.scoring.scorer import Scorer
from grpo_lightning.training import passes

LARGE = 2**34


class Exhausted(Scorer):
    """Runs out of memory above so many completion tokens with gradient, whatever is free."""

    limit = LARGE

    def score(self, rollouts: Any, rows: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and int(rollouts.completion_lengths[rows].sum()) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().score(rollouts, rows, *args, **kwargs)


def train(folder: Path, model_dir: Path, strategy: str, totals: list[int], limits: list[int], settings: dict) -> Any:
    """One GRPO step; what this rank chose and ended with, or the error that it ended by."""
    for module in (memory_budget, rehearsal, passes):  # as in tests/memory/test_rehearsal.py
        for name, value in {"LARGEST_BUDGET": 512, "BUDGET_STEP": 32, "PROBE_TOKENS": 128, "PASS_WORK": 0.0}.items():
            if hasattr(module, name):
                setattr(module, name, value)
    module = make_module(model_dir, generator=CopyGenerator(), **settings)

    def make_scorer(model: Any) -> Scorer:
        scorer = Exhausted(model, module.sampling.temperature)
        scorer.limit = limits[module.global_rank]
        return scorer

    gauges = [SavedTensors(total) for total in totals]
    if totals:
        module.memory_gauge = lambda: gauges[module.global_rank]
        module.passes.make_scorer = make_scorer
    split = FSDP2Strategy(tensor_parallel_size=2)
    trainer = make_trainer(folder, 1, devices=2, strategy=split if strategy == "split" else strategy)
    try:
        trainer.fit(module, datamodule=make_data(folder / "data"))
    except MemoryError as error:
        return str(error)
    return module.passes.max_tokens, {name: whole(p.detach()) for name, p in module.policy.model.named_parameters()}


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("memory")
    (folder / "data").mkdir()
    return folder, save_toy_model(folder / "model", tie_word_embeddings=True, num_key_value_heads=2)


@pytest.mark.parametrize(
    ("strategy", "total", "settings"),
    [
        ("ddp", 1_300_000, {"top_entropy_quantile": 0.7}),
        ("fsdp2", 500_000, {"gradient_checkpointing": "selective"}),
        ("split", 1_000_000, {"top_entropy_quantile": 0.7}),
    ],
)
def test_the_rank_with_the_smallest_device_decides(places, strategy, total, settings):
    small = run_ranks(2, train, *places, strategy, [total] * 2, [LARGE] * 2, settings)
    mixed = run_ranks(2, train, *places, strategy, [LARGE, total], [LARGE] * 2, settings)
    unmeasured = run_ranks(2, train, *places, strategy, [], [], settings | {"max_tokens_per_microbatch": mixed[0][0]})
    chosen = [rank[0] for rank in (*small, *mixed)]
    assert len(set(chosen)) == 1
    assert chosen[0] < 512
    for found, expected in zip(mixed, unmeasured, strict=True):
        for name, weight in found[1].items():
            assert torch.equal(weight, expected[1][name]), name


def test_ddp_ranks_halve_together_when_one_runs_out_where_it_had_room(places):
    ranks = run_ranks(2, train, *places, "ddp", [LARGE] * 2, [LARGE, 150], {})
    assert [rank[0] for rank in ranks] == [128, 128]


def test_ddp_ranks_refuse_a_number_together_when_it_does_not_fit_on_one(places):
    ranks = run_ranks(
        2, train, *places, "ddp", [LARGE] * 2, [150, LARGE], {"max_tokens_per_microbatch": 300, "num_generations": 8}
    )
    assert all("A micro-batch of 300 tokens does not fit into memory" in error for error in ranks)


def test_sharded_ranks_refuse_together_what_one_of_them_expects_not_to_fit(places):
    ranks = run_ranks(
        2,
        train,
        *places,
        "fsdp2",
        [LARGE, 1_300_000],
        [LARGE] * 2,
        {"max_tokens_per_microbatch": 300, "num_generations": 8},
    )
    assert all("A micro-batch of 300 tokens does not fit into memory" in error for error in ranks)
    assert all("trainer.strategy.init_args.tensor_parallel_size=2 of FSDP2Strategy" in error for error in ranks)
