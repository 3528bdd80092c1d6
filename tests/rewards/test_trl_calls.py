"""Reward functions written for TRL give through our runner what they give through TRL's own call."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from trl_call import HISTORY, STATE, trl_scores
from trl_shapes import (
    COLUMNS,
    IDS,
    SHAPES,
    TEXTS,
    as_published,
    format_and_length,
    math_graders,
    of_people,
    returned,
    signatures,
)

from grpo_lightning.rewards import RewardFailedError, RewardRunner, RewardState, resolve_rewards
from grpo_lightning.rewards.base import RewardContractError

MODULES = (as_published, format_and_length, math_graders, of_people, returned, signatures)
REFUSED = "refused"
LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Difference:
    """What TRL and we make of a reward where that is not the same, on purpose."""

    trl: Any
    ours: Any
    because: str


DIFFERENCES = {
    "without_kwargs": Difference(REFUSED, [1, 0, 1, 0, 1, 1], "arguments that a function does not name are left out"),
    "sync_wrapper_of_async": Difference(
        REFUSED, [2.0 * len(text) for text in TEXTS], "a coroutine is awaited, however it came about"
    ),
    "nothing": Difference(REFUSED, [math.nan] * 6, "None stands for None for each completion"),
    "dictionary": Difference(
        [3.0, 0.5, -1.0, 0.0, 2.25, 7.0], REFUSED, "the keys of a dictionary are hardly meant as rewards"
    ),
    "set": Difference("any order", REFUSED, "a set has no order, so no value belongs to a completion"),
    "pairs": Difference(REFUSED, [3.0] * 6, "a list speaks of the tokens or turns of its completion"),
    "infinity": Difference(
        [math.inf, 1, 2, 3, 4, 5], REFUSED, "an infinite reward makes every advantage of its group NaN"
    ),
    "ints_beyond_float": Difference(REFUSED, [LARGEST, -LARGEST, 0, 1, 2, 3], "the nearest number ranks them rightly"),
    "beyond_float32": Difference(
        [math.inf, -math.inf, 0, 1, 2, 3], [1e39, -1e39, 0, 1, 2, 3], "rewards are float64 here"
    ),
    "numpy_column": Difference(REFUSED, [3, 0.5, -1, 0, 2.25, 7], "as a tensor of that shape, which TRL takes"),
    "list_of_0d_arrays": Difference(REFUSED, [3, 0.5, -1, 0, 2.25, 7], "as tensors without axes, which TRL takes"),
    "raises_on_one_completion": Difference(
        REFUSED,
        [math.nan] * 6,
        "a failure costs its call, is counted and shown, and stops the run if it is no exception",
    ),
}


def batch(form: str) -> tuple[list[Any], list[Any]]:
    questions = ["6 * 7?", "6 * 7?", "half?", "half?", "3 + 4?", "3 + 4?"]
    if form == "text":
        return questions, list(TEXTS)
    return (
        [[{"role": "user", "content": question}] for question in questions],
        [[{"role": "assistant", "content": text}] for text in TEXTS],
    )


def our_scores(reward: Any, form: str) -> tuple[Any, dict, dict]:
    runner = RewardRunner(resolve_rewards([reward]))
    prompts, completions = batch(form)
    state = RewardState(**STATE, log_history=list(HISTORY))
    try:
        table = runner.score(prompts, completions, IDS, COLUMNS, state, group=[0, 0, 1, 1, 2, 2])
    finally:
        runner.close()
    of_reward = ("time/", f"rewards/{runner.names[0]}/")
    metrics = {k: [v] for k, v in table.metrics.items() if not k.startswith(of_reward)}
    return table.values[:, 0].tolist(), table.extra, metrics


CASES = [(name, form) for name, shape in SHAPES.items() for form in shape.forms]


def test_there_are_at_least_eighty_shapes_and_every_difference_is_of_one_of_them() -> None:
    assert len(SHAPES) >= 80
    assert set(DIFFERENCES) <= set(SHAPES)


def test_every_difference_is_documented_with_its_reason() -> None:
    page = (Path(__file__).parents[2] / "docs" / "from-trl.md").read_text(encoding="utf-8")
    rows = page.split("## Calls of rewards")[1].split("\n## ")[0].splitlines()
    reasons = [row.split("|")[-2].strip() for row in rows if row.startswith("| ")][1:]
    assert sorted(reasons) == sorted(difference.because for difference in DIFFERENCES.values())


@pytest.mark.parametrize(("name", "form"), CASES, ids=[f"{name}-{form}" for name, form in CASES])
def test_a_reward_gives_what_it_gives_in_trl(name: str, form: str) -> None:
    shape = SHAPES[name]
    try:
        theirs: Any = trl_scores(shape.make(), *batch(form))
    except Exception:
        theirs = (REFUSED, {}, {})
    try:
        ours: Any = our_scores(shape.make(), form)
    except (RewardContractError, RewardFailedError):
        ours = (REFUSED, {}, {})
    if name in DIFFERENCES:
        difference = DIFFERENCES[name]
        assert_same(theirs[0], difference.trl)
        assert_same(ours[0], difference.ours)
        return
    assert_same(ours[0], theirs[0])
    assert ours[1:] == theirs[1:]


def assert_same(values: Any, expected: Any) -> None:
    """Equal as float32, in which TRL holds rewards; None where None."""
    if expected == "any order":
        assert isinstance(values, list)
    elif REFUSED in (values, expected):
        assert values == expected
    else:
        found, wanted = (torch.tensor(list(numbers), dtype=torch.float64) for numbers in (values, expected))
        if not (wanted.nan_to_num(posinf=0.0).abs() > LARGEST).any():
            found, wanted = found.float(), wanted.float()
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", [name for name in SHAPES if SHAPES[name] and name.startswith(("accuracy", "alarm"))])
def test_graders_with_time_limits_of_their_own_tell_right_from_wrong(name: str) -> None:
    values = our_scores(SHAPES[name].make(), "chat")[0]
    assert values[0] > 0 and values[0] != values[1], "all equal is what swallowed errors look like"
