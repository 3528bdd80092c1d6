"""Tests of dynamic sampling: which groups a step keeps, how it fills up, and that a resumed run goes on exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import fit, make_data, make_module, make_trainer, weights

from grpo_lightning.rewards import RewardComposition, RewardTable
from grpo_lightning.rollouts.base import Moment, Sampled, Source
from grpo_lightning.rollouts.dynamic_sampling import DynamicSampler, DynamicSampling, ReplayBuffer, groups_with_signal
from grpo_lightning.rollouts.dynamic_source import DynamicSource
from grpo_lightning.rollouts.groups import join_rollouts
from grpo_lightning.rollouts.scored_groups import ScoredGroups
from grpo_lightning.training.distillation import Distillation
from grpo_lightning.types import PromptBatch, Rollouts

nan = float("nan")


def groups_of(rewards: list[list[float]], first_uid: int = 0) -> ScoredGroups:
    """One group per list; token ids tell prompt and completion: prompt 10, 11, ..., completion 100 * prompt + n."""
    count = len(rewards)
    prompts = [10 + first_uid + b for b in range(count)]
    flat = [value for group in rewards for value in group]
    group = [b for b, values in enumerate(rewards) for _ in values]
    ids = [[100 * prompts[b] + n] * (1 + n) for b, values in enumerate(rewards) for n in range(len(values))]
    rollouts = Rollouts.from_lists(
        [[prompt] * (1 + b) for b, prompt in enumerate(prompts)],
        ids,
        [[-float(len(tokens))] * len(tokens) for tokens in ids],
        [len(tokens) == 2 for tokens in ids],
        group,
    )
    batch = PromptBatch([str(p) for p in prompts], [[p] for p in prompts], [p - 10 for p in prompts], {"a": prompts})
    values = torch.tensor(flat, dtype=torch.float64).unsqueeze(1)
    extra = {"note": [f"{prompts[b]}" for b in group]}
    return ScoredGroups(
        batch, rollouts, RewardTable(values, ("r",), torch.ones(1, dtype=torch.float64), extra, {"m": 1.0})
    )


def compose(rewards: RewardTable) -> tuple[torch.Tensor, torch.Tensor]:
    return RewardComposition()(rewards.values, rewards.names, rewards.weights)


def uids(groups: ScoredGroups) -> list[int]:
    return groups.batch.uids


def test_a_group_has_signal_where_its_totals_differ() -> None:
    values = torch.tensor(
        [[1.0], [1.0], [0.0], [1.0], [nan], [1.0], [nan], [nan], [0.1 + 0.2], [0.3]], dtype=torch.float64
    )
    group = torch.tensor([4, 4, 1, 1, 2, 2, 3, 3, 0, 0])
    assert groups_with_signal(values, group, torch.ones(1)) == [0, 1]  # 0.1 + 0.2 is not 0.3
    watched = torch.cat([torch.zeros(10, 1), values], dim=1)
    assert groups_with_signal(watched, group, torch.tensor([1.0, 0.0])) == []  # a reward of weight 0 is only watched


def test_chosen_groups_keep_their_tokens_rewards_and_prompts_together() -> None:
    chosen = groups_of([[0, 1], [2, 2, 2], [3, 4]]).take([2, 0])
    assert uids(chosen) == [2, 0] and chosen.batch.columns == {"a": [12, 10]} and chosen.batch.prompts == ["12", "10"]
    rollouts = chosen.rollouts
    assert [p.tolist() for p in rollouts.prompts()] == [[12, 12, 12], [10]]
    assert [c.tolist() for c in rollouts.completions()] == [[1200], [1201, 1201], [1000], [1001, 1001]]
    assert rollouts.group.tolist() == [0, 0, 1, 1]
    assert rollouts.sampling_logprobs.tolist() == [-1, -2, -2, -1, -2, -2]
    assert rollouts.truncated.tolist() == [False, True, False, True]
    assert (
        chosen.rewards.values.flatten().tolist() == [3, 4, 0, 1]
        and chosen.rewards.extra["note"] == ["12"] * 2 + ["10"] * 2
    )
    both = ScoredGroups.joined([chosen, groups_of([[7, 8]], first_uid=5)])
    assert uids(both) == [2, 0, 5] and both.rollouts.group.tolist() == [0, 0, 1, 1, 2, 2]
    assert [c.tolist() for c in both.rollouts.completions()][-1] == [1501, 1501]
    nothing = groups_of([[0, 1]]).take([])
    assert len(nothing) == 0 and nothing.rollouts.num_completions == 0
    assert join_rollouts([nothing.rollouts, both.rollouts]).group.tolist() == [0, 0, 1, 1, 2, 2]


class Given(Source):
    """Groups of each round as they are written down."""

    key = "given"

    def __init__(self, rounds: list[ScoredGroups]) -> None:
        self.rounds = rounds

    def sample(self, batch: PromptBatch, moment: Moment, stage: str = "train") -> Sampled:
        groups = self.rounds[0 if stage == "train" else int(stage.removeprefix("refill "))].take(range(len(batch)))
        return Sampled(groups.batch, groups.rollouts, lambda: groups.rewards)


class Further:
    """Ten prompts, and how many of them a step asks for at a time."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 10

    def batch(self, rows: list[int]) -> PromptBatch:
        self.asked.append(len(rows))
        return groups_of([[0.0]] * len(rows)).batch


def sample(sampler: DynamicSampler, rounds: list[ScoredGroups], step: int = 0) -> tuple[Sampled, list[int]]:
    """A step of its source on one rank, whose generator has nothing to do; and what it asked for."""
    further, nothing = Further(), cast(Any, None)
    source = DynamicSource(Given(rounds), nothing, sampler, lambda: cast(Any, further))
    return source.sample(rounds[0].batch, Moment(step)), further.asked


def collect(
    sampler: DynamicSampler, rounds: list[list[list[float]]], step: int = 0
) -> tuple[ScoredGroups, dict[str, list[float]], list[int]]:
    given = [groups_of(rewards, first_uid=100 * number) for number, rewards in enumerate(rounds)]
    sampled, asked = sample(sampler, given, step)
    short = {name.removeprefix("dynamic_sampling/"): values.tolist() for name, values in sampled.entries.items()}
    return ScoredGroups(sampled.batch, sampled.rollouts, sampled.await_rewards()), short, asked


def test_dropping_leaves_the_groups_with_signal() -> None:
    sampler = DynamicSampler(DynamicSampling("drop"), seed=0, compose=compose)
    groups, numbers, asked = collect(sampler, [[[1, 1], [0, 1], [0, 0], [2, 3]]])
    assert uids(groups) == [1, 3] and asked == []
    assert sum(numbers["kept"]) == 2 and len(numbers["kept"]) == 4 and numbers["rounds"] == [1.0]
    assert numbers["missing"] == [1, 1, 0, 0] and sum(numbers["reward_sampled"]) == 8


def test_refilling_draws_just_what_is_missing_until_the_cap() -> None:
    sampler = DynamicSampler(DynamicSampling("refill", max_rounds=2), seed=0, compose=compose)
    rounds: list[Any] = [[[1, 1], [0, 1], [0, 0], [2, 2]], [[0, 1], [0, 0], [1, 1]], [[5, 5], [5, 6]]]
    groups, numbers, asked = collect(sampler, rounds)
    assert asked == [3, 2] and uids(groups) == [1, 100, 201]
    assert sum(numbers["kept"]) == 3 and len(numbers["kept"]) == 9 and numbers["missing"] == [1, 0, 0, 0]
    full, numbers, asked = collect(sampler, [[[0, 1], [1, 2]]])
    assert asked == [] and uids(full) == [0, 1] and numbers["missing"] == [0, 0]


def test_where_nothing_has_signal_one_group_remains_so_that_a_step_is_a_step() -> None:
    groups, numbers, _ = collect(DynamicSampler(DynamicSampling("drop"), seed=0, compose=compose), [[[1, 1], [0, 0]]])
    assert uids(groups) == [0] and sum(numbers["kept"]) == 0


def test_good_groups_fill_gaps_of_later_steps_once_newest_first_until_too_old() -> None:
    sampler = DynamicSampler(DynamicSampling("drop", replay_groups=2, replay_max_age=2), seed=0, compose=compose)
    collect(sampler, [[[0, 1], [0, 2], [0, 3]]], step=0)  # 1 and 2 are kept, 0 made room
    groups, numbers, _ = collect(sampler, [[[1, 1], [5, 6]]], step=1)
    assert uids(groups) == [1, 2] and numbers["replayed"] == [1, 0] and numbers["missing"] == [0, 0]
    assert groups.rewards.values.flatten().tolist() == [5, 6, 0, 3]
    assert [then for then, _ in sampler.replay.groups] == [0, 1]
    collect(sampler, [[[1, 1], [1, 1]]], step=4)  # those of steps 0 and 1 are too old
    assert sampler.replay.groups == []


def test_a_buffer_of_no_size_keeps_nothing() -> None:
    buffer = ReplayBuffer(size=1, max_age=1)
    buffer.add(0, groups_of([[0, 1], [0, 2]]))
    assert [uids(group) for group in buffer.pop(5, step=1)] == [[1]] and buffer.pop(5, step=1) == []


def test_further_prompts_are_an_endless_order_shared_by_the_ranks() -> None:
    samplers = [DynamicSampler(DynamicSampling("refill"), seed=3, compose=compose) for _ in range(2)]
    drawn = [[row for count in (2, 0, 3) for row in s.next_rows(count, 5, rank, 2)] for rank, s in enumerate(samplers)]
    assert sorted(drawn[0] + drawn[1]) == sorted(list(range(5)) * 2)
    alone = DynamicSampler(DynamicSampling("refill"), seed=3, compose=compose)
    assert alone.next_rows(10, 5) == [row for pair in zip(*drawn, strict=True) for row in pair]


def test_the_state_of_one_rank_count_serves_another() -> None:
    sampler = DynamicSampler(DynamicSampling("drop", replay_groups=3), seed=0, compose=compose)
    collect(sampler, [[[0, 1], [0, 2], [0, 3]]], step=7)
    sampler.drawn = 5
    state = json.loads(json.dumps(sampler.state_dict(), default=lambda tensor: tensor.tolist()))
    assert state["ranks"][0]["drawn"] == 5 and len(state["ranks"][0]["replay"]) == 3
    same = DynamicSampler(DynamicSampling("drop", replay_groups=3), seed=0, compose=compose)
    same.load_state_dict(sampler.state_dict(), {"r": 1.0})
    assert [uids(group) for group in same.replay.pop(3, 7)] == [[2], [1], [0]]
    halves = [DynamicSampler(DynamicSampling("drop", replay_groups=3), seed=0, compose=compose) for _ in range(2)]
    for rank, half in enumerate(halves):
        half.load_state_dict(sampler.state_dict(), {"r": 1.0}, rank, 2)
    assert [[uids(group) for _, group in half.replay.groups] for half in halves] == [[[0], [2]], [[1]]]
    assert [half.drawn for half in halves] == [3, 3]


def test_kept_groups_are_the_same_out_of_a_checkpoint() -> None:
    sampler = DynamicSampler(DynamicSampling("drop", replay_groups=3), seed=0, compose=compose)
    collect(sampler, [[[0, 1], [0, 2]]])
    again = DynamicSampler(DynamicSampling("drop", replay_groups=3), seed=0, compose=compose)
    again.load_state_dict(sampler.state_dict(), {"r": 1.0})
    for kept, (_, group) in zip(sampler.replay.groups, again.replay.groups, strict=True):
        assert group.batch == kept[1].batch and group.batch.columns["a"]
        assert group.rewards.extra == kept[1].rewards.extra and group.rewards.extra["note"]


def test_off_is_what_yaml_makes_of_it_too() -> None:
    assert DynamicSampling(False) == DynamicSampling("off") == DynamicSampling()


def test_kept_groups_that_other_rewards_scored_are_left_out_of_a_resumed_run(caplog: pytest.LogCaptureFixture) -> None:
    sampler = DynamicSampler(DynamicSampling("drop", replay_groups=3), seed=0, compose=compose)
    collect(sampler, [[[0, 1], [0, 2]]])
    again = DynamicSampler(DynamicSampling("drop", replay_groups=3), seed=0, compose=compose)
    again.load_state_dict(sampler.state_dict(), {"r": 0.5})
    assert [group.rewards.weights.tolist() for _, group in again.replay.groups] == [[0.5]] * 2 and not caplog.text
    for others in ({"s": 1.0}, {"r": 1.0, "s": 1.0}):
        again.load_state_dict(sampler.state_dict(), others)
        assert again.replay.groups == []
    assert "scored by other rewards" in caplog.text


def test_kept_groups_of_an_older_version_are_left_out_and_no_other_rewards_are_blamed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sampler = DynamicSampler(DynamicSampling("drop", replay_groups=3), seed=0, compose=compose)
    collect(sampler, [[[0, 1], [0, 2]]])
    state = sampler.state_dict()
    for _, group in state["ranks"][0]["replay"]:
        del group["names"]
    sampler.load_state_dict(state, {"r": 1.0})
    assert sampler.replay.groups == []
    assert "older version" in caplog.text and "other rewards" not in caplog.text


def test_messages_and_columns_of_kept_groups_can_be_read_out_of_a_checkpoint(tmp_path: Path) -> None:
    groups = groups_of([[0.0, 1.0]])
    prompts: Any = [[{"role": "user", "content": "2+3?", "level": np.int64(3)}]]
    groups = replace(groups, batch=replace(groups.batch, prompts=prompts, columns={"a": [np.float32(0.5)]}))
    torch.save(groups.state_dict(), tmp_path / "a.ckpt")
    batch = ScoredGroups.from_state(torch.load(tmp_path / "a.ckpt", weights_only=True), {"r": 1.0}).batch
    assert repr(batch.prompts) == "[[{'role': 'user', 'content': '2+3?', 'level': 3}]]"
    assert repr(batch.columns) == "{'a': [0.5]}"


def test_metrics_are_of_the_step_that_scores_and_not_of_the_groups_that_it_replays() -> None:
    def at(seconds: float) -> Any:
        groups = groups_of([[0, 1], [1, 1]])
        return replace(groups, rewards=replace(groups.rewards, metrics={"seconds": seconds}))

    sampler = DynamicSampler(DynamicSampling("drop", replay_groups=3), seed=0, compose=compose)
    for step, seconds in enumerate((5.0, 2.0)):
        sampled, _ = sample(sampler, [at(seconds)], step)
        assert sampled.await_rewards().metrics == {"seconds": seconds}
    assert len(sampled.batch) == 2  # one of them from the step before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "retry"}, r"model\.dynamic_sampling\.mode='retry'"),
        ({"mode": "refill", "max_rounds": 0}, "max_rounds=0"),
        ({"replay_groups": 4}, "replay_groups has no effect with mode=off"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DynamicSampling(**settings)


def even_only(completions: list[str], prompts: list[str], **columns: Any) -> list[float]:
    """Differs inside the groups of prompts with an even number of characters, and is 1 everywhere in the others."""
    digits = [sum(c.isdigit() for c in text) / max(1, len(text)) for text in completions]
    return [share if len(prompt) % 2 == 0 else 1.0 for share, prompt in zip(digits, prompts, strict=True)]


def test_a_step_trains_on_the_kept_groups_alone(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Dropping groups of advantage 0 changes dapo's divisor and nothing else: one step of plain SGD scales."""
    settings: dict[str, Any] = {"rewards": [even_only], "data": {"batch_size": 6}}
    kept = fit(tiny_model_dir, tmp_path, dynamic_sampling=DynamicSampling("drop"), **settings)
    whole = fit(tiny_model_dir, tmp_path, **settings)
    numbers = kept.step_metrics
    assert 0 < numbers["dynamic_sampling/kept"] < 1 and numbers["frac_reward_zero_std"] == 0.0
    assert whole.step_metrics["frac_reward_zero_std"] == pytest.approx(1 - numbers["dynamic_sampling/kept"])
    assert numbers["dynamic_sampling/reward_sampled"] == pytest.approx(whole.step_metrics["reward"])
    start = weights_of(tiny_model_dir)
    ratio = whole.last_step.rollouts.completion_lengths.sum() / kept.last_step.rollouts.completion_lengths.sum()
    for name, after in weights(kept).items():
        expected = start[name] + ratio * (weights(whole)[name] - start[name])
        torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-6)


def weights_of(model_dir: Path) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    return dict(AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).named_parameters())


def run(
    model_dir: Path, folder: Path, steps: int, ckpt: Path | None = None, save: Path | None = None, **settings: Any
) -> Any:
    folder.mkdir(exist_ok=True)
    defaults = {"rewards": [even_only], "dynamic_sampling": DynamicSampling("refill", max_rounds=1, replay_groups=4)}
    module = make_module(model_dir, **(defaults | settings))
    callbacks = [ModelCheckpoint(save, every_n_train_steps=1, save_top_k=-1, filename="{step}")] if save else []
    saving = {"callbacks": callbacks, "enable_checkpointing": bool(save)}
    make_trainer(folder, steps, **saving).fit(module, datamodule=make_data(folder), ckpt_path=ckpt)
    return module


def says(completions: list[str], log_extra: Any, **columns: Any) -> list[float]:
    """As ``even_only``, with a word about each completion."""
    log_extra("said", [f"{len(text)} characters" for text in completions])
    return even_only(completions, **columns)


TAUGHT: dict[str, dict[str, Any]] = {
    "by columns": {"distillation": Distillation("self", teacher_prompt="{prompt}{ground_truth}")},
    "by what a reward said": {
        "rewards": [says],
        "distillation": Distillation("self", teacher_prompt="{prompt}{feedback}", feedback_column="said"),
    },
}


@pytest.mark.parametrize("taught", TAUGHT.values(), ids=TAUGHT)
def test_groups_replayed_out_of_a_checkpoint_are_taught_as_before(
    tiny_model_dir: Path, tmp_path: Path, taught: dict[str, Any]
) -> None:
    settings = {"dynamic_sampling": DynamicSampling("drop", replay_groups=4), **taught}
    whole = run(tiny_model_dir, tmp_path / "whole", 4, save=tmp_path / "checkpoints", **settings)
    resumed = run(tiny_model_dir, tmp_path / "whole", 4, ckpt=tmp_path / "checkpoints" / "step=3.ckpt", **settings)
    assert resumed.step_metrics["dynamic_sampling/replayed"] > 0
    assert resumed.step_metrics["distillation/divergence"] == whole.step_metrics["distillation/divergence"]
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


def test_a_resumed_run_draws_and_replays_what_the_whole_one_did(tiny_model_dir: Path, tmp_path: Path) -> None:
    whole = run(tiny_model_dir, tmp_path / "whole", 6, save=tmp_path / "checkpoints")
    assert whole.step_source.sampler.drawn > 0
    resumed = run(tiny_model_dir, tmp_path / "whole", 6, ckpt=tmp_path / "checkpoints" / "step=3.ckpt")
    assert resumed.step_source.sampler.drawn == whole.step_source.sampler.drawn
    timed = ("time", "tokens_per_second")
    for name, value in whole.step_metrics.items():
        assert any(word in name for word in timed) or resumed.step_metrics[name] == value, name
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(resumed)[name]), name
    replayed = [group.state_dict() for _, group in whole.step_source.sampler.replay.groups]
    again = [group.state_dict() for _, group in resumed.step_source.sampler.replay.groups]
    assert len(replayed) == len(again)
    assert all(
        torch.equal(a["rollouts"]["completion_ids"], b["rollouts"]["completion_ids"])
        for a, b in zip(replayed, again, strict=True)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"dynamic_sampling": DynamicSampling("drop", replay_groups=2), "importance_sampling_correction": False},
            "older policy",
        ),
        ({"dynamic_sampling": DynamicSampling("drop"), "num_minibatches": 2}, r"model\.num_minibatches=2"),
        ({"reward_composition": RewardComposition("product"), "partial_rewards": "drop"}, r"model\.partial_rewards="),
        ({"reward_composition": RewardComposition(gates={"share_of_digits": "format"})}, "names 'format'"),
    ],
)
def test_combinations_that_cannot_work_are_refused(
    tiny_model_dir: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_module(tiny_model_dir, **settings)
