"""Tests of rewards inside a real training step: early starts, what is logged, and the same numbers however they run."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import fit, make_data, make_module, make_trainer, share_of_digits, weights

from grpo_lightning.rewards import FunctionReward, RewardComposition, RewardFailedError, RewardRuntime


def reward(function: Any = share_of_digits, **calling: Any) -> FunctionReward:
    return FunctionReward(name="reward", function=function, **calling)


async def share_async(completions: list[str], **columns: Any) -> list[float]:
    return share_of_digits(completions)


@pytest.mark.parametrize(
    "other",
    [
        reward(scope="group"),
        reward(scope="completion"),
        reward(scope="completion", batched=True, concurrency=1),
        reward(share_async, scope="completion"),
        reward(share_async),
    ],
    ids=["group", "completion", "batched", "async completion", "async batch"],
)
def test_how_a_reward_is_called_changes_no_bit_of_the_run(tiny_model_dir: Path, tmp_path: Path, other: Any) -> None:
    settings = {"max_steps": 2, "beta": 0.1, "stop": ["e"]}
    plain = fit(tiny_model_dir, tmp_path, rewards=[reward()], **settings)
    changed = fit(tiny_model_dir, tmp_path, rewards=[other], **settings)
    for name, weight in weights(plain).items():
        assert torch.equal(weight, weights(changed)[name]), name
    for name, value in plain.step_metrics.items():
        if "time" not in name and "per_second" not in name:
            assert changed.step_metrics[name] == value, name


@pytest.mark.parametrize("scope", ["batch", "group", "completion"])
def test_a_reward_with_an_alarm_of_its_own_gives_a_step_the_same_numbers(
    tiny_model_dir: Path, tmp_path: Path, scope: str
) -> None:
    threads = set()

    def limited(completions: list[str], **columns: Any) -> list[float]:
        try:
            before = signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.alarm(60)
            threads.add(threading.current_thread())
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        except Exception:
            return [0.0] * len(completions)
        return share_of_digits(completions)

    plain = fit(tiny_model_dir, tmp_path, rewards=[reward()])
    alarmed = fit(tiny_model_dir, tmp_path, rewards=[reward(limited, scope=scope)])
    assert alarmed.step_metrics["reward"] == plain.step_metrics["reward"] > 0
    assert threads == {threading.main_thread()}


def test_scoring_has_begun_before_generation_ends(tiny_model_dir: Path, tmp_path: Path) -> None:
    begun = threading.Event()
    seen_while_generating = []

    def notices(completions: list[str], **columns: Any) -> list[float]:
        begun.set()
        return share_of_digits(completions)

    module = make_module(tiny_model_dir, rewards=[reward(notices, scope="completion")], stop=["e", "a"])
    generate = module.source.generator.generate

    def generate_and_look(prompt_ids: Any, sampling: Any, seeds: Any, on_completed: Any) -> Any:
        def completed(n: int, ids: list[int]) -> None:
            on_completed(n, ids)
            if not seen_while_generating:  # the first completion: all others are still on their way
                seen_while_generating.append(begun.wait(60))

        return generate(prompt_ids, sampling, seeds, completed)

    module.source.generator.generate = generate_and_look  # type: ignore[method-assign]
    make_trainer(tmp_path).fit(module, datamodule=make_data(tmp_path))
    assert seen_while_generating == [True]


def test_rewards_of_a_generator_that_reports_nothing_are_the_same(tiny_model_dir: Path, tmp_path: Path) -> None:
    silent = make_module(tiny_model_dir, rewards=[reward(scope="completion")])
    generate = silent.source.generator.generate
    silent.source.generator.generate = lambda ids, sampling, seeds, on_completed: generate(ids, sampling, seeds)  # type: ignore[method-assign]
    make_trainer(tmp_path).fit(silent, datamodule=make_data(tmp_path))
    loud = fit(tiny_model_dir, tmp_path, rewards=[reward(scope="completion")])
    assert silent.step_metrics["reward"] == loud.step_metrics["reward"]


def test_what_rewards_log_reaches_the_loggers_and_the_record_of_the_step(tiny_model_dir: Path, tmp_path: Path) -> None:
    def talks(completions: list[str], log_metric: Any, log_extra: Any, **columns: Any) -> list[float | None]:
        log_metric("lengths/characters", sum(map(len, completions)) / len(completions))
        log_extra("upper", [text.upper() for text in completions])
        return [None if n == 1 else share for n, share in enumerate(share_of_digits(completions))]

    module = fit(tiny_model_dir, tmp_path, rewards=[reward(talks, scope="group")])
    numbers = module.step_metrics
    texts = module.source.texts.completions(module.last_step.batch, module.last_step.rollouts)
    assert numbers["lengths/characters"] == pytest.approx(sum(map(len, texts)) / len(texts))
    assert module.last_step.rewards.extra["upper"] == [text.upper() for text in texts]
    assert numbers["rewards/reward/errors"] == numbers["rewards/reward/timeouts"] == 0.0
    assert numbers["frac_reward_none"] == pytest.approx(1 / 4)
    assert {"time/rewards/reward", "time/rewards/reward/max", "time/rewards/wait"} <= numbers.keys()


def test_a_reward_that_fails_stops_the_run_with_its_traceback(tiny_model_dir: Path, tmp_path: Path) -> None:
    def broken(completions: list[str], **columns: Any) -> list[float]:
        raise ConnectionError("the grader is gone")

    with pytest.raises(RewardFailedError, match=r"(?s)'reward' failed on 12 of the last 12.*the grader is gone"):
        fit(tiny_model_dir, tmp_path, rewards=[reward(broken, scope="completion")])


def test_a_reward_that_hangs_is_given_up_and_the_step_goes_on(tiny_model_dir: Path, tmp_path: Path) -> None:
    release = threading.Event()

    def hangs(completions: list[str], prompts: list[str], **columns: Any) -> list[float]:
        if prompts[0].startswith("00"):
            release.wait(60)
        return share_of_digits(completions)

    runtime = RewardRuntime(time_limit=0.3, max_error_share=1.0)
    module = fit(
        tiny_model_dir,
        tmp_path,
        rewards=[reward(hangs, scope="group")],
        reward_runtime=runtime,
        data={"batch_size": 12},
    )
    release.set()
    assert module.step_metrics["rewards/reward/errors"] == 4 * 4  # a third of the prompts start so
    assert module.step_metrics["rewards/reward/timeouts"] == 4
    assert module.step_metrics["frac_reward_none"] == pytest.approx(1 / 3)


def test_a_curriculum_sees_the_step(tiny_model_dir: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, int | None, str | None]] = []

    def curriculum(completions: list[str], trainer_state: Any, **columns: Any) -> list[float]:
        state = trainer_state
        seen.append((state.global_step, state.max_steps, state.max_completion_length, state.model_name_or_path))
        return share_of_digits(completions)

    fit(tiny_model_dir, tmp_path, max_steps=2, rewards=[reward(curriculum)])
    assert seen == [(0, 2, 8, str(tiny_model_dir)), (1, 2, 8, str(tiny_model_dir))]


def test_gates_decide_the_total_and_not_the_logged_reward(tiny_model_dir: Path, tmp_path: Path) -> None:
    def gate(completions: list[str], **columns: Any) -> list[float]:
        return [float(n % 2) for n in range(len(completions))]

    rewards = [reward(), FunctionReward(name="gate", function=gate, weight=0.0)]
    composition = RewardComposition(gates={"reward": "gate"})
    module = fit(tiny_model_dir, tmp_path, rewards=rewards, reward_composition=composition)
    values = module.last_step.rewards.values
    assert module.step_metrics["rewards/reward/mean"] == pytest.approx(values[:, 0].mean().item())
    assert module.step_metrics["reward"] == pytest.approx((values[:, 0] * values[:, 1]).mean().item())
