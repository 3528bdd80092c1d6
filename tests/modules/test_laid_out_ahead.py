"""The first pass of a supervised step is laid out while the step before it is computed, and not again."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from runs import make_trainer, train_stage, write_rows
from toy_models import save_toy_model

from grpo_lightning import GRPODataModule
from grpo_lightning.modules.sft import SFTModule
from grpo_lightning.rollouts.replicas import Replica
from grpo_lightning.scoring import forward
from grpo_lightning.scoring.scorer import Scorer
from grpo_lightning.types import Rollouts

ROWS = [{"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in range(12)]


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[tuple[int, ...], list[tuple[list[int], bool]]]]:
    """By completion tokens: the rows of each layout that was made of them, and whether the step itself made it."""
    made, original = defaultdict(list), forward.pack

    def pack(rollouts: Rollouts, rows: torch.Tensor, share_prompts: bool) -> Any:
        in_step = threading.current_thread() is threading.main_thread()
        made[tuple(rollouts.completion_ids.tolist())].append((rows.tolist(), in_step))
        return original(rollouts, rows, share_prompts)

    monkeypatch.setattr(forward, "pack", pack)
    yield made


def fit(model_dir: Any, tmp_path: Any, **settings: Any) -> list[tuple[int, ...]]:
    """Three steps of four rows; the completion tokens of each."""
    module = SFTModule(model_name_or_path=str(model_dir), **settings)
    steps, read = [], module.demonstrations
    module.demonstrations = lambda batch: (steps.append(read(batch)), steps[-1])[1]
    data = GRPODataModule(
        dataset=write_rows(tmp_path / "rows.jsonl", ROWS), batch_size=4, shuffle=False, converter="sft"
    )
    make_trainer(tmp_path, max_steps=3).fit(module, datamodule=data)
    return [tuple(rollouts.completion_ids.tolist()) for rollouts in steps]


def test_the_announced_layout_is_the_one_that_the_step_uses(tiny_model_dir, tmp_path, packed):
    first, *others = fit(tiny_model_dir, tmp_path)
    assert packed[first] == [([0, 1, 2, 3], True)] and len(others) == 2
    assert [packed[step] for step in others] == [[([0, 1, 2, 3], False)]] * 2


def test_with_a_load_balance_the_loads_of_the_first_pass_are_counted_in_it(tmp_path, packed):
    model_dir = save_toy_model(tmp_path / "model", "qwen3_moe")
    last = fit(model_dir, tmp_path, router_aux_loss_coef=0.5, max_tokens_per_microbatch=20)[-1]
    (ahead, *in_step), parts = packed[last], {tuple(rows) for rows, _ in packed[last]}
    assert not ahead[1] and all(made_in_step for _, made_in_step in in_step)
    assert len(parts) > 1 and len(packed[last]) == 2 * len(parts)  # for the loads of each pass, then for its loss


@pytest.mark.parametrize("reason", ["a tensor-parallel group", "full logits"])
def test_nothing_is_planned_or_laid_out_that_no_pass_uses(tiny_model_dir, tmp_path, packed, monkeypatch, reason):
    module = train_stage(SFTModule, "sft", ROWS, tiny_model_dir, tmp_path)
    rollouts = Rollouts.from_lists([[5]], [[6, 7]], [[0.0, 0.0]], [False], [0])
    if reason == "full logits":

        class Shifted(type(module.policy.model)):
            """Does something to its logits that no config field tells."""

            def forward(self, *args: Any, **kwargs: Any) -> Any:
                output = super().forward(*args, **kwargs)
                output.logits = output.logits + torch.arange(output.logits.shape[-1]) / 20
                return output

        module.policy.model.__class__ = Shifted
        module.passes._scorer = None
        module.passes.lay_out_ahead(rollouts)  # the first one finds out
        assert module.passes.scorer.is_plain
    else:
        module.passes.replica = Replica(size=2)
    planned = []
    monkeypatch.setattr(Scorer, "plan", lambda *args: planned.append(args) or [])
    module.passes.lay_out_ahead(rollouts)
    assert not planned and not packed[6, 7]
