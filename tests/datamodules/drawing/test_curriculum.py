"""Pools by pass rate: who waits, who is drawn, and that a resumed run draws what the whole one did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import make_data, make_module, make_trainer, weights, write_prompts

from grpo_lightning.datamodules import GRPODataModule
from grpo_lightning.datamodules.curriculum import EASY, HARD, OPEN, Curriculum
from grpo_lightning.datamodules.drawing.outcomes import GroupOutcomes
from grpo_lightning.datamodules.drawing.pools import Pools
from grpo_lightning.generation import TransformersGenerator
from grpo_lightning.modules import GRPOModule, SFTModule


def pools(count: int = 12, shuffle: bool = False, **settings: Any) -> Pools:
    return Pools(count, Curriculum(**settings), seed=5, shuffle=shuffle)


def test_without_outcomes_every_prompt_is_drawn_once_before_any_is_drawn_again() -> None:
    drawn = pools(shuffle=True)
    rounds = [[place for _ in range(3) for place in drawn.draw(4)] for _ in range(3)]
    assert [sorted(one) for one in rounds] == [list(range(12))] * 3
    assert rounds[0] != rounds[1] != rounds[2]


def test_a_step_takes_its_shares_of_the_pools_and_fills_up_with_open_prompts() -> None:
    drawn = pools(20, easy_share=0.25, hard_share=0.25)
    for place in range(5):
        drawn.move(place, EASY)
    for place in range(5, 8):
        drawn.move(place, HARD)
    for _ in range(2):
        step = drawn.draw(8)
        assert [sum(drawn.pool[place] == pool for place in step) for pool in (OPEN, EASY, HARD)] == [4, 2, 2]
    nothing_hard = pools(20, easy_share=0.25, hard_share=0.25)
    assert nothing_hard.draw(8) == list(range(8))


def test_easy_and_hard_prompts_take_turns_in_being_tried_again() -> None:
    drawn = pools(12, easy_share=0.25, hard_share=0.0)
    for place in range(4):
        drawn.move(place, EASY)
    tried = [place for _ in range(8) for place in drawn.draw(4) if place < 4]
    assert sorted(tried[:4]) == sorted(tried[4:]) == [0, 1, 2, 3]


def test_a_step_is_full_where_nothing_is_open_and_hard_prompts_go_first() -> None:
    drawn = pools(6, easy_share=0.0, hard_share=0.0)
    for place, pool in enumerate([EASY, EASY, EASY, HARD, HARD, HARD]):
        drawn.move(place, pool)
    assert sorted(drawn.draw(4)) == [0, 3, 4, 5]


def test_a_prompt_that_comes_back_is_not_drawn_many_times_in_a_row() -> None:
    drawn = pools(8, easy_share=0.0, hard_share=0.0)
    drawn.move(0, HARD)
    for _ in range(10):
        assert 0 not in drawn.draw(4)
    drawn.move(0, OPEN)
    assert [drawn.draw(4).count(0) for _ in range(6)].count(1) <= 4
    assert sorted(drawn.turn.tolist())[0] >= sorted(drawn.turn.tolist())[-1] - 1


@pytest.mark.parametrize(
    ("rate", "is_dead", "settings", "pool"),
    [
        (1.0, True, {}, EASY),
        (0.0, True, {}, HARD),
        (0.0, False, {}, OPEN),  # no completion is correct, but some are better than others
        (1.0, False, {}, OPEN),
        (0.5, False, {}, OPEN),
        (0.875, False, {"easy_from": 0.8}, EASY),
        (0.125, False, {"hard_up_to": 0.2}, HARD),
        (0.25, False, {"hard_up_to": 0.2}, OPEN),
    ],
)
def test_dead_groups_and_limits_decide_the_pool(rate: float, is_dead: bool, settings: Any, pool: int) -> None:
    assert Curriculum(**settings).pool(rate, is_dead) == pool


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"easy_share": 0.5, "hard_share": 0.5}, "easy_share=0.5 and hard_share=0.5 must"),
        ({"hard_share": -0.1}, "hard_share=-0.1"),
        ({"easy_from": 0.2, "hard_up_to": 0.2}, "hard_up_to=0.2 and easy_from=0.2"),
    ],
)
def test_settings_that_leave_nothing_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Curriculum(**settings)


def test_outcomes_are_of_groups_and_know_nothing_of_unscored_ones() -> None:
    nan = float("nan")
    totals = torch.tensor([1.0, 0.0, 0.0, 0.0, nan, nan, 1.0, nan])
    outcomes = GroupOutcomes.of([3, 5, 9, 4], torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), totals, totals)
    assert outcomes.uids == [3, 5, 9, 4]
    torch.testing.assert_close(outcomes.pass_rates, torch.tensor([0.5, 0, nan, 1]).double(), equal_nan=True)
    assert outcomes.is_dead.tolist() == [False, True, True, True]


# -- in a run -------------------------------------------------------------------------------------------------------

SOLVED, FAILED = "3", "5"
"""The results in the prompts that every completion solves, and that none does."""


def by_prompt(completions: list[str], ground_truth: list[str], **columns: Any) -> list[float]:
    """Nothing to learn from two prompts; from the others, whether a completion has a digit."""
    fixed = {SOLVED: 1.0, FAILED: 0.0}
    learnt = [float(any(c.isdigit() for c in text)) for text in completions]
    return [fixed.get(truth, reward) for truth, reward in zip(ground_truth, learnt, strict=True)]


def run(
    model_dir: Path, folder: Path, ckpt: Path | None = None, save: Path | None = None, **settings: Any
) -> GRPOModule:
    """Eight steps of four prompts out of twelve; the uids of each step are kept on the module."""
    folder.mkdir(exist_ok=True)
    ranks = settings.pop("ranks", 1)
    steps = settings.pop("steps", 8)
    rewards = settings.pop("rewards", [by_prompt])
    module = make_module(model_dir, rewards=rewards, generator=TransformersGenerator(), **settings.pop("model", {}))
    module.seen = []
    end_step = module.end_step

    def note(report: Any) -> None:
        module.seen.append(module.last_step.batch.uids)
        end_step(report)

    module.end_step = note
    callbacks = [ModelCheckpoint(save, every_n_train_steps=1, save_top_k=-1, filename="{step}")] if save else []
    path = write_prompts(folder / "rows.jsonl") if ranks == 1 else folder / "rows.jsonl"
    data = make_data(
        folder, **{"dataset": str(path), "batch_size": 4 // ranks, "curriculum": Curriculum(0.1, 0.1)} | settings
    )
    trainer = make_trainer(
        folder,
        steps,
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        callbacks=callbacks,
        enable_checkpointing=bool(save),
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=True)
    return module


def test_dead_groups_fill_the_pools_and_are_seldom_drawn(tiny_model_dir: Path, tmp_path: Path) -> None:
    module = run(tiny_model_dir, tmp_path)
    uids = [uid for step in module.seen for uid in step]
    (source,) = module.datamodule.order.sources
    assert (source.pool[1], source.pool[2]) == (EASY, HARD)
    assert max(uids.count(1), uids.count(2)) < max(uids.count(uid) for uid in range(12))
    shares = [module.step_metrics[f"curriculum/{pool}"] for pool in ("open", "easy", "hard")]
    assert sum(shares) == pytest.approx(1) and min(shares) >= 1 / 12


@pytest.mark.parametrize("mode", ["off", "drop"])
def test_a_resumed_run_draws_and_learns_what_the_whole_one_did(mode: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    from grpo_lightning.rollouts.dynamic_sampling import DynamicSampling

    settings: dict[str, Any] = {"model": {"dynamic_sampling": DynamicSampling(mode)}}
    whole = run(tiny_model_dir, tmp_path / "whole", save=tmp_path / "checkpoints", **settings)
    for step in (1, 3, 6):  # an epoch has three steps
        on = run(tiny_model_dir, tmp_path / "on", tmp_path / "checkpoints" / f"step={step}.ckpt", **settings)
        assert on.seen == whole.seen[step:]
        same_end(on, whole)


def same_end(one: GRPOModule, other: GRPOModule) -> None:
    for name, weight in weights(one).items():
        assert torch.equal(weight, weights(other)[name]), name
    for mine, its in zip(one.datamodule.order.sources, other.datamodule.order.sources, strict=True):
        assert torch.equal(mine.pool, its.pool) and torch.equal(mine.turn, its.turn)


def test_a_mixture_with_a_curriculum_resumes_and_reports_each_dataset(tiny_model_dir: Path, tmp_path: Path) -> None:
    tmp_path.joinpath("rows").mkdir()
    datasets = {
        "one": {"file_name": str(write_prompts(tmp_path / "rows" / "one.jsonl", 8)), "weight": 3},
        "two": {"file_name": str(write_prompts(tmp_path / "rows" / "two.jsonl", 5))},
    }
    settings: dict[str, Any] = {"dataset": None, "datasets": datasets}
    whole = run(tiny_model_dir, tmp_path / "whole", save=tmp_path / "checkpoints", **settings)
    assert all([uid >= 8 for uid in step].count(True) == 1 for step in whole.seen)
    assert (whole.step_metrics["data/one/share"], whole.step_metrics["data/two/share"]) == (0.75, 0.25)
    total = sum(
        whole.step_metrics[f"data/{name}/{kind}"] * share
        for name, share in (("one", 0.75), ("two", 0.25))
        for kind in ("reward",)
    )
    assert total == pytest.approx(whole.step_metrics["reward"])
    on = run(tiny_model_dir, tmp_path / "on", tmp_path / "checkpoints" / "step=5.ckpt", **settings)
    assert on.seen == whole.seen[5:]
    same_end(on, whole)


def test_a_stream_resumes_bit_for_bit_in_training(tiny_model_dir: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"curriculum": None, "streaming": True, "shuffle_block": 5, "steps": 5}
    whole = run(tiny_model_dir, tmp_path / "whole", save=tmp_path / "checkpoints", **settings)
    for step in (2, 3):
        on = run(tiny_model_dir, tmp_path / "on", tmp_path / "checkpoints" / f"step={step}.ckpt", **settings)
        assert on.seen == whole.seen[step:]
        for name, weight in weights(on).items():
            assert torch.equal(weight, weights(whole)[name]), name


def test_a_curriculum_of_demonstrations_is_refused_before_weights_load(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}+1=", "completion": str(n + 1)} for n in range(6)]
    module = SFTModule(model_name_or_path=str(tiny_model_dir))
    data = GRPODataModule(rows, batch_size=2, curriculum=Curriculum())
    with pytest.raises(ValueError, match=r"data.curriculum follows rewards, and SFTModule has none"):
        make_trainer(tmp_path, 1).fit(module, datamodule=data)
    assert not module.policy.is_loaded
