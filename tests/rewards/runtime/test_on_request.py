"""Tests of what a reward gets that asks for it by name: the group and the logprobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import fit, share_of_digits

from grpo_lightning.rewards import FunctionReward, RewardContractError, RewardRunner, resolve_rewards

LOGPROBS = [[-0.5, -0.25], [-1.0], [-2.0]]


@pytest.fixture
def runner() -> Iterator[Callable[..., RewardRunner]]:
    made: list[RewardRunner] = []

    def make(*rewards: Any) -> RewardRunner:
        made.append(RewardRunner(resolve_rewards(list(rewards))))
        return made[-1]

    yield make
    for one in made:
        one.close()


def group_of(completions: Any, group: Any) -> list[float]:
    return [float(prompt) for prompt in group]


def surprise(completions: Any, logprobs: Any) -> list[float]:
    return [-sum(of_one) for of_one in logprobs]


def score(runner: RewardRunner, **more: Any) -> list[list[float]]:
    ids = [[1] * len(of_one) for of_one in LOGPROBS]
    return runner.score(["p", "p", "q"], ["a", "b", "c"], ids, group=[4, 4, 7], **more).values.T.tolist()


@pytest.mark.parametrize("scope", ["batch", "group", "completion"])
def test_a_reward_that_names_them_gets_its_rows_of_both(runner: Callable[..., RewardRunner], scope: str) -> None:
    rewards = [FunctionReward(function=function, scope=scope) for function in (group_of, surprise)]
    assert score(runner(*rewards), logprobs=LOGPROBS) == [[4.0, 4.0, 7.0], [0.75, 1.0, 2.0]]


def test_kwargs_hold_neither_as_in_trl(runner: Callable[..., RewardRunner]) -> None:
    seen: list[set[str]] = []

    def reward(**kwargs: Any) -> list[float]:
        seen.append(set(kwargs) & {"group", "logprobs"})
        return [0.0] * len(kwargs["completions"])

    score(runner(reward), logprobs=LOGPROBS)
    assert seen == [set()]


def test_a_column_of_the_name_goes_first(runner: Callable[..., RewardRunner]) -> None:
    columns = {"group": ["1", "2", "3"], "logprobs": [[1.0], [2.0], [3.0]]}
    assert score(runner(group_of, surprise), columns=columns) == [[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]]


def test_logprobs_that_nobody_knows_are_an_error_unless_optional(runner: Callable[..., RewardRunner]) -> None:
    def optional(completions: Any, logprobs: Any = None) -> list[float]:
        return [float(logprobs is None)] * len(completions)

    assert score(runner(optional)) == [[1.0] * 3]
    with pytest.raises(RewardContractError, match="'surprise' needs the column logprobs"):
        score(runner(surprise))


@pytest.mark.parametrize("scope", ["batch", "completion"])
def test_a_step_hands_out_the_samplers_logprobs_and_the_prompts_number(
    tiny_model_dir: Path, tmp_path: Path, scope: str
) -> None:
    seen: list[tuple[list[int], list[float]]] = []
    groups: list[int] = []

    def reward(completions: Any, completion_ids: Any, logprobs: Any, group: Any) -> list[float]:
        seen.extend(zip(completion_ids, logprobs, strict=True))
        groups.extend(group)
        return share_of_digits(completions)

    module = fit(tiny_model_dir, tmp_path, rewards=[FunctionReward(function=reward, scope=scope)])
    rollouts = module.last_step.rollouts
    ids = [of_one.tolist() for of_one in rollouts.completions()]
    assert sorted(seen) == sorted(zip(ids, rollouts.logprob_lists(), strict=True))
    assert sorted(groups) == [0] * 4 + [1] * 4 + [2] * 4
