"""Several datasets with weights: exact quotas, no prompt twice in a step, a state that goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from toy_models import build_tokenizer

from grpo_lightning.datamodules import GRPODataModule
from grpo_lightning.datamodules.drawing.loader import TrainingLoader
from grpo_lightning.datamodules.drawing.orders import DrawnOrder
from grpo_lightning.datamodules.drawing.quotas import Quotas
from grpo_lightning.datamodules.sources.specs import weighted


def rows(name: str, count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{name} {index}", f"of_{name}": index} for index in range(count)]


def made(**settings: Any) -> GRPODataModule:
    data = GRPODataModule(**settings)
    data.tokenizer = build_tokenizer()
    data.setup("fit")
    return data


def test_each_step_has_its_exact_share_where_that_is_a_whole_number() -> None:
    quotas = Quotas([0.1, 0.6, 0.3])
    assert [quotas.next(10) for _ in range(3)] == [[1, 6, 3]] * 3


def test_fractions_come_in_turn_and_add_up() -> None:
    quotas = Quotas([1, 1, 1])  # of 4 prompts, 4/3 each
    assert [quotas.next(4) for _ in range(3)] == [[2, 1, 1], [1, 2, 1], [1, 1, 2]]
    assert quotas.given == [4, 4, 4]


@given(
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=6),
    per_step=st.integers(1, 40),
    steps=st.integers(1, 30),
)
def test_running_totals_stay_within_two_of_the_exact_share(weights: list[float], per_step: int, steps: int) -> None:
    quotas = Quotas(weights)
    for _ in range(steps):
        step = quotas.next(per_step)
        assert sum(step) == per_step and min(step) >= 0
    exact = [share * per_step * steps for share in quotas.shares]
    assert all(abs(one - given) < 2 for one, given in zip(exact, quotas.given, strict=True))


def test_a_mixture_gives_every_step_its_share_of_each_dataset_on_any_number_of_ranks() -> None:
    data = made(
        datasets={"big": rows("big", 40), "small": {"dataset": rows("small", 6), "weight": 0.5}}, batch_size=6, seed=3
    )
    loader = data.train_dataloader()
    assert len(loader) == 46 // 6
    steps = list(loader)
    assert [[prompt.split()[0] for prompt in step.prompts].count("small") for step in steps] == [2] * 7
    assert all(len(set(step.uids)) == 6 for step in steps)
    assert all(set(step.columns) == {"of_big", "of_small"} for step in steps)
    first = steps[0]
    for prompt, big, small in zip(first.prompts, first.columns["of_big"], first.columns["of_small"], strict=True):
        assert prompt == (f"small {small}" if big is None else f"big {big}")
    # Three steps see each of the six small prompts once, and the next three again.
    small = [sorted(p for step in steps[i : i + 3] for p in step.prompts if p[0] == "s") for i in (0, 3)]
    assert small[0] == small[1] == [f"small {index}" for index in range(6)]
    ranks = []
    for rank in range(2):
        order = DrawnOrder([40, 6], [1, 0.5], 6, seed=3)
        ranks.append(list(TrainingLoader(data.train_prompts, 3, rank, 2, order=order)))
    joined = [one.uids + other.uids for one, other in zip(*ranks, strict=True)]
    assert joined == [step.uids for step in steps]


def test_uids_differ_between_datasets_and_tell_them_apart() -> None:
    data = made(datasets={"a": rows("a", 4), "b": rows("b", 4)}, batch_size=2)
    prompts = data.train_prompts
    assert len(set(prompts.uids)) == 8
    for step in data.train_dataloader():
        for uid, prompt in zip(step.uids, step.prompts, strict=True):
            assert "ab"[prompts.dataset_of(uid)] == prompt[0]


@pytest.mark.parametrize("steps", [1, 4, 7, 9])
def test_a_loader_that_takes_over_gives_what_was_left(steps: int) -> None:
    settings = {"datasets": {"a": rows("a", 9), "b": {"dataset": rows("b", 5), "weight": 0.4}}, "batch_size": 2}
    whole, first, second = (made(**settings).train_dataloader() for _ in range(3))
    batches = [batch.uids for _ in range(2) for batch in whole]
    assert len(batches) == 14
    seen: list[list[int]] = []
    while len(seen) < steps:
        for batch in first:
            seen.append(batch.uids)
            if len(seen) == steps:
                break
    assert seen == batches[:steps]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    rest = [batch.uids for batch in second]
    rest += [batch.uids for batch in second] if len(rest) + steps < 14 else []
    assert rest == batches[steps:]


def test_a_step_planned_ahead_is_the_step_that_comes() -> None:
    loader = made(datasets={"a": rows("a", 9), "b": rows("b", 9)}, batch_size=4).train_dataloader()
    iterator = iter(loader)
    next(iterator)
    ahead = loader.batch_at(*loader.following_place()).uids
    saved = loader.state_dict()
    assert next(iterator).uids == ahead
    again = made(datasets={"a": rows("a", 9), "b": rows("b", 9)}, batch_size=4).train_dataloader()
    again.load_state_dict(saved)
    assert next(iter(again)).uids == ahead


def test_a_mixture_is_not_continued_with_other_data() -> None:
    saved = made(datasets={"a": rows("a", 9), "b": rows("b", 9)}, batch_size=4).train_dataloader().state_dict()
    with pytest.raises(ValueError, match=r"data is of 9, 9 prompts, and this run's of 8, 10 prompts"):
        made(datasets={"a": rows("a", 8), "b": rows("b", 10)}, batch_size=4).train_dataloader().load_state_dict(saved)
    with pytest.raises(ValueError, match=r"data is of 9, 9 prompts, and this run's is one dataset"):
        made(dataset=rows("a", 18), batch_size=4).train_dataloader().load_state_dict(saved)
    loader = made(datasets={"a": rows("a", 9), "b": rows("b", 9)}, batch_size=4).train_dataloader()
    plain = made(dataset=rows("a", 18), batch_size=4).train_dataloader().state_dict()
    with pytest.raises(ValueError, match=r"one dataset without a curriculum"):
        loader.load_state_dict(plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"datasets": {"a": "x.jsonl"}, "dataset": "y.jsonl"}, "data.dataset has no effect beside data.datasets"),
        ({"datasets": {}}, "must map names to datasets"),
        (
            {"datasets": {"a": {"dataset": "x", "weight": 0}}},
            r"data.datasets.a.weight=0 is neither a positive number nor rows",
        ),
        ({"datasets": {"a": {"dataset": "x", "weight": True}}}, r"weight=True is neither"),
        (
            {"datasets": {"a": {"dataset": "x", "weight": "rows"}, "b": {"dataset": "y", "weight": 2}}},
            r"weighs a by rows and others by numbers",
        ),
        ({"datasets": {"a": {"dataset": "x", "converter": "gsm8k"}}}, r"data.datasets.a: converter has no effect"),
    ],
)
def test_settings_of_a_mixture_are_checked_on_construction(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GRPODataModule(**settings)


def test_datasets_weighed_by_their_rows_are_as_if_in_one_file() -> None:
    parts = {name: {"dataset": rows(name, count), "weight": "rows"} for name, count in (("a", 30), ("b", 10))}
    data = made(datasets=parts, batch_size=8)
    shares = [[data.train_prompts.dataset_of(uid) for uid in batch.uids].count(1) for batch in data.train_dataloader()]
    assert shares == [2] * 5  # an epoch of 40 prompts


def test_a_dataset_too_small_for_its_share_and_mixed_forms_are_refused() -> None:
    with pytest.raises(ValueError, match=r"A step of 4 prompts takes up to 2 of a dataset that has 1"):
        made(datasets={"a": rows("a", 9), "b": rows("b", 1)}, batch_size=4)
    chats = [{"prompt": [{"role": "user", "content": "Hi"}]}] * 3
    with pytest.raises(ValueError, match=r"mixes conversations \(c\) and text \(a\). Set conversational"):
        made(datasets={"a": rows("a", 9), "c": chats}, batch_size=2)


def test_each_dataset_of_a_mixture_has_its_own_converter_and_split(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"question": "1 + 1?", "answer": "two\\n#### 2"}\n' * 3)
    (tmp_path / "t.csv").write_text("q,a\nx,7\ny,8\n")
    datasets = {
        "maths": {"file_name": str(tmp_path / "m.jsonl"), "converter": "gsm8k", "weight": 2},
        "texts": {"file_name": str(tmp_path / "t.csv"), "columns": {"prompt": "q", "ground_truth": "a"}},
    }
    batch = next(iter(made(datasets=datasets, batch_size=3).train_dataloader()))
    assert sorted(map(str, batch.columns["ground_truth"]))[:2] == ["2", "2"]
    assert set(batch.prompts) - {"1 + 1?"} in ({"x"}, {"y"})
    assert weighted(datasets)["maths"][2] == 2.0


def test_a_mixture_and_a_curriculum_parse_on_a_command_line() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(GRPODataModule, "data")
    arguments = [
        "--data.datasets={a: {dataset: a.jsonl, weight: 2}, b: {reasoning_gym: leg_counting, size: 10}, c: c.csv}",
        "--data.curriculum.easy_share=0.05",
    ]
    data = parser.instantiate(parser.parse_args(arguments)).data
    assert {name: weight for name, (_, _, weight) in weighted(data.datasets).items()} == {"a": 2, "b": 1, "c": 1}
    assert data.curriculum.easy_share == 0.05
