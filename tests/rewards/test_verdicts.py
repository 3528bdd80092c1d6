"""The table of verdicts, line by line: right answers in every notation, and wrong ones that only look right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from verdicts import TABLE, Verdict, read_verdicts

from grpo_lightning.rewards import AccuracyReward

VERDICTS = read_verdicts()
KINDS = list(dict.fromkeys((verdict.mode, verdict.kind) for verdict in VERDICTS))


@pytest.fixture(scope="module")
def rewards() -> Iterator[dict[str, AccuracyReward]]:
    rewards = {mode: AccuracyReward(mode=mode) for mode in ("numeric", "exact")}
    rewards["math"] = AccuracyReward(mode="math", time_limit=20.0)
    yield rewards
    for reward in rewards.values():
        reward.close()


def graded(reward: AccuracyReward, verdicts: list[Verdict]) -> list[float | None]:
    return reward(
        prompts=["p"] * len(verdicts),
        completions=[verdict.completion for verdict in verdicts],
        ground_truth=[verdict.reference for verdict in verdicts],
    )


@pytest.mark.parametrize(("mode", "kind"), KINDS)
def test_every_answer_of_the_table_gets_its_verdict(mode: str, kind: str, rewards: dict[str, AccuracyReward]) -> None:
    verdicts = [verdict for verdict in VERDICTS if (verdict.mode, verdict.kind) == (mode, kind)]
    values = graded(rewards[mode], verdicts)
    wrong = [
        (one.reference, one.answer, value) for one, value in zip(verdicts, values, strict=True) if value != one.expected
    ]
    assert not wrong


def test_the_table_has_four_hundred_lines_and_both_verdicts_in_every_mode() -> None:
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert len(lines) >= 400
    assert len({tuple(line.split("\t")[:3]) for line in lines}) == len(lines)  # no pair twice
    counts = Counter((verdict.mode, verdict.expected) for verdict in VERDICTS)
    assert all(counts[mode, value] >= 5 for mode in ("math", "numeric", "exact") for value in (0.0, 1.0))


def test_a_right_answer_is_right_as_its_own_reference(rewards: dict[str, AccuracyReward]) -> None:
    same = [one for one in VERDICTS if one.mode == "math" and one.expected and not one.answer.startswith("> ")]
    values = rewards["math"](
        prompts=["p"] * len(same),
        completions=[one.completion for one in same],
        ground_truth=[one.completion.removeprefix("<answer>").removesuffix("</answer>") for one in same],
    )
    assert [one.answer for one, value in zip(same, values, strict=True) if value != 1.0] == []
