"""A dead run says that it is dead."""

from __future__ import annotations

import warnings

import pytest
from runs import fit

from grpo_lightning.callbacks import Alarms
from grpo_lightning.errors import ExplainedError

SOME_END = list("etaoinshrdlu0123456789 ")
"""Stop strings that end some of the random completions."""


def all_equal(completions, **columns):
    return [0.5] * len(completions)


def test_equal_rewards_are_warned_of_and_then_stop_the_run(tiny_model_dir, tmp_path):
    alarms = Alarms(warn_after=2, stop_after=3)
    with (
        pytest.warns(UserWarning, match="Alarm equal_rewards: in the last 2 steps all completions of every prompt got"),
        pytest.raises(RuntimeError, match="Stopped by alarm zero_gradient: in the last 3 steps the gradient was zero"),
    ):
        fit(tiny_model_dir, tmp_path, max_steps=9, trainer={"callbacks": [alarms]}, rewards=[all_equal])


def test_truncation_of_everything_names_the_setting(tiny_model_dir, tmp_path):
    said = "in the last 2 steps every completion ran into model.max_completion_length"
    with pytest.warns(UserWarning, match=f"Alarm .*{said}") as warned:
        module = fit(
            tiny_model_dir,
            tmp_path,
            max_steps=2,
            max_completion_length=1,
            trainer={"callbacks": [Alarms(warn_after=2)]},
        )
    assert module.step_metrics["completions/clipped_ratio"] == 1.0
    assert len([warning for warning in warned if said in str(warning.message)]) == 1


def test_nan_gradients_stop_the_run(tiny_model_dir, tmp_path):
    def break_loss(module):
        original = module.policy_loss
        module.policy_loss = lambda *arguments: original(*arguments) * float("nan")

    with pytest.raises(RuntimeError, match="Stopped by alarm not_finite: in the last 2 steps the loss or gradient"):
        fit(
            tiny_model_dir,
            tmp_path,
            max_steps=9,
            trainer={"callbacks": [Alarms(warn_after=1, stop_after_not_finite=2)]},
            on_module=break_loss,
        )


def test_without_the_callback_nan_gradients_end_the_run_too(tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("grpo_lightning.training.optimization.MOST_SKIPPED", 3)
    finite = iter([False, False, True, False, False, False])  # one good step starts the count anew
    seen = []

    def break_loss(module):
        original = module.policy_loss

        def loss(*arguments):
            seen.append(next(finite))
            return original(*arguments) * (1.0 if seen[-1] else float("nan"))

        module.policy_loss = loss

    with pytest.raises(ExplainedError, match=r"The last 3 optimizer steps had a gradient with NaN .* would never end"):
        fit(tiny_model_dir, tmp_path, max_steps=9, on_module=break_loss)
    assert seen == [False, False, True, False, False, False]


def test_a_healthy_run_is_silent(tiny_model_dir, tmp_path):
    def characters(completions, **columns):
        return [float(len(text)) for text in completions]

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        module = fit(
            tiny_model_dir,
            tmp_path,
            max_steps=3,
            trainer={"callbacks": [Alarms(warn_after=1)]},
            stop=SOME_END,
            rewards=[characters],
        )
    assert module.steps_done == 3 and module.step_metrics["frac_reward_zero_std"] < 1
    assert [str(warning.message) for warning in warned if "Alarm" in str(warning.message)] == []


def test_a_good_step_in_between_resets_the_count(tiny_model_dir, tmp_path):
    alarms = Alarms(warn_after=2, stop_after=2)
    calls = []

    def every_other_step(completions, **columns):
        calls.append(1)
        return [float(len(text)) for text in completions] if len(calls) % 2 else [0.0] * len(completions)

    rewards = [every_other_step]
    fit(tiny_model_dir, tmp_path, max_steps=4, trainer={"callbacks": [alarms]}, rewards=rewards, stop=SOME_END)
    assert alarms.in_a_row["equal_rewards"] == 1


def test_limits_the_wrong_way_round_are_refused():
    with pytest.raises(ValueError, match="warn_after=5 must be at least 1 and at most stop_after=3"):
        Alarms(warn_after=5, stop_after=3)


@pytest.mark.parametrize(
    ("last_share", "is_stalled"),
    [(0.02, True), (0.029, True), (0.031, False), (0.6, False)],  # 0.02 after the first step: 0.03 is 1.5 times that
)
def test_weights_that_stay_where_the_first_step_left_them_are_warned_of_at_step_twenty(last_share, is_stalled):
    alarms = Alarms()
    for step in range(1, 20):
        alarms.on_train_batch_end(None, Learner(step, 0.02), None, None, step)
    resumed = Alarms()
    resumed.load_state_dict(alarms.state_dict())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        resumed.on_train_batch_end(None, Learner(20, last_share), None, None, 20)
    assert [str(w.message).startswith("Alarm stalled_weights: after 20 steps only") for w in said] == [
        True
    ] * is_stalled


class Learner:
    """What an alarm looks at."""

    def __init__(self, step, changed):
        self.steps_done, self.step_metrics = step, {"update/changed_since_start": changed, "grad_norm": 1.0}
