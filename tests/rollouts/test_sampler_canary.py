"""The canary: it is silent over rounding, and stops a run whose sampler has other weights than the trainer."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Callback
from runs import fit, make_module

from grpo_lightning.generation import SamplingSettings, TransformersGenerator
from grpo_lightning.rollouts.sampler_canary import (
    MISMATCH,
    UNREPORTED,
    SamplerCanary,
    StaleSamplerError,
    make_canary,
)


class ForgetfulGenerator(TransformersGenerator):
    """Samples from a copy of the policy that misses every update after the first ``updates``: a broken sync."""

    def __init__(self, updates: int) -> None:
        super().__init__()
        self.updates_left = updates

    def start(self, policy, tokenizer, model_name_or_path):
        self.copy = deepcopy(policy)
        with torch.no_grad():
            for parameter in self.copy.parameters():  # as an engine that was built from other weights
                parameter.add_(0.3 * torch.randn_like(parameter))
        super().start(self.copy, tokenizer, model_name_or_path)

    def update_weights(self, policy):
        if self.updates_left > 0:
            self.copy.load_state_dict(policy.state_dict())
            self.updates_left -= 1
        return {}


class StructuredGenerator(TransformersGenerator):
    """Says that it can sample with structured outputs, as vLLM's can."""

    def check_sampling(self, sampling):
        pass


def large_steps(params):
    return torch.optim.SGD(params, lr=20.0)


class Measured(Callback):
    """Mismatches of the steps that have one: a step of dead groups scores no token."""

    def __init__(self) -> None:
        self.mismatches: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.mismatches += [value for name, value in pl_module.step_metrics.items() if name == MISMATCH]


def test_a_run_in_which_every_update_arrives_is_not_stopped(tiny_model_dir, tmp_path):
    measured, forgetful = Measured(), ForgetfulGenerator(4)
    trainer = {"callbacks": [measured]}
    module = fit(tiny_model_dir, tmp_path, 4, trainer, generator=forgetful, optimizer=large_steps)
    assert module.steps_done == 4
    assert len(measured.mismatches) >= 3  # so large steps may leave the last one without a difference in reward
    assert max(measured.mismatches) < 1e-4


def test_a_missed_update_stops_the_run_and_names_the_sampler_as_the_stale_side(tiny_model_dir, tmp_path):
    with pytest.raises(StaleSamplerError, match=r"Step 3: .*They agreed at step 2, so the sampler's weights are stale"):
        fit(tiny_model_dir, tmp_path, max_steps=8, generator=ForgetfulGenerator(2), optimizer=large_steps)


def test_a_sampler_that_never_had_the_policys_weights_stops_the_first_step(tiny_model_dir, tmp_path):
    with pytest.raises(StaleSamplerError, match=r"Step 1: .*They never agreed"):
        fit(tiny_model_dir, tmp_path, max_steps=8, generator=ForgetfulGenerator(0))


def test_no_checkpoint_is_written_of_a_step_that_was_stopped(tiny_model_dir, tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    saving = {
        "enable_checkpointing": True,
        "callbacks": [ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)],
    }
    with pytest.raises(StaleSamplerError):
        fit(tiny_model_dir, tmp_path, 8, saving, generator=ForgetfulGenerator(2), optimizer=large_steps)
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"epoch=0-step=1.ckpt", "epoch=0-step=2.ckpt"}


def test_the_limit_is_the_mean_difference_and_null_turns_the_check_off(tiny_model_dir, tmp_path):
    canary = SamplerCanary(0.1)
    canary.check({MISMATCH: 0.1}, step=1)
    canary.check({}, step=2)  # no token was trained
    with pytest.raises(StaleSamplerError, match=r"Step 3: .*differ by 0.11 nats.*max_sampler_mismatch=0.1"):
        canary.check({MISMATCH: 0.11}, step=3)
    with pytest.raises(StaleSamplerError):
        canary.check({MISMATCH: float("nan")}, step=3)
    fit(tiny_model_dir, tmp_path, 2, generator=ForgetfulGenerator(0), max_sampler_mismatch=None)


def test_a_limit_below_rounding_is_refused_in_the_words_of_the_config(tiny_model_dir):
    with pytest.raises(ValueError, match=r"model\.max_sampler_mismatch=0\.0 would stop every run"):
        make_module(tiny_model_dir, max_sampler_mismatch=0.0)


def test_there_is_no_limit_where_sampler_and_trainer_differ_by_design(tiny_model_dir):
    assert make_canary(0.1, SamplingSettings(top_p=0.9), replays_groups=False, staleness="").max_mismatch is None
    assert make_canary(0.1, SamplingSettings(), replays_groups=True, staleness="").max_mismatch is None
    assert make_canary(0.1, SamplingSettings(temperature=0.7), replays_groups=False, staleness="").max_mismatch == 0.1
    assert make_module(tiny_model_dir, top_k=3).canary.max_mismatch is None
    able = {"structured_outputs": {"regex": "a"}, "generator": StructuredGenerator()}
    assert make_module(tiny_model_dir, **able).canary.max_mismatch is None
    assert make_module(tiny_model_dir).canary.max_mismatch == 0.1


class SilentGenerator(TransformersGenerator):
    """Reports NaN in place of every logprob from the step ``silent_from`` on."""

    def __init__(self, silent_from: int) -> None:
        super().__init__()
        self.silent_from, self.calls = silent_from, 0

    def generate(self, *args, **kwargs):
        rollouts = super().generate(*args, **kwargs)
        self.calls += 1
        if self.calls < self.silent_from:
            return rollouts
        return replace(rollouts, sampling_logprobs=torch.full_like(rollouts.sampling_logprobs, torch.nan))


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}])  # also where no difference is looked at
def test_a_sampler_that_reports_no_logprob_for_three_steps_stops_the_run(tiny_model_dir, tmp_path, settings):
    with pytest.raises(StaleSamplerError, match=r"for 3 steps the sampler has reported NaN"):
        fit(tiny_model_dir, tmp_path, max_steps=8, generator=SilentGenerator(2), **settings)


def test_a_run_may_go_on_without_logprobs_where_its_config_says_so(tiny_model_dir, tmp_path):
    module = fit(tiny_model_dir, tmp_path, 4, generator=SilentGenerator(1), max_sampler_mismatch=None)
    assert module.steps_done == 4
    assert UNREPORTED not in module.step_metrics


def test_steps_without_logprobs_count_in_a_row_and_only_where_tokens_were_trained():
    canary = SamplerCanary(0.1)
    for step, metrics in enumerate(
        [{UNREPORTED: 5.0}, {UNREPORTED: 5.0}, {MISMATCH: 0.0}, {UNREPORTED: 5.0}, {}, {}, {}]
    ):
        canary.check(metrics, step)
