"""Losses, advantages and rewards of single tokens that a config chooses, in a real step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from runs import fit, share_of_digits, weights


def per_turn(completions: list[str], **_: Any) -> list[list[float]]:
    return [[value] for value in share_of_digits(completions)]


def per_token(completions_ids: list[list[int]], **_: Any) -> list[list[float]]:
    return [[float(token % 2) for token in ids] for ids in completions_ids]


def test_a_list_of_one_turn_trains_the_weights_of_the_same_number_to_the_last_bit(tiny_model_dir, tmp_path):
    number = fit(tiny_model_dir, tmp_path, rewards=[share_of_digits])
    listed = fit(tiny_model_dir, tmp_path, rewards=[per_turn])
    for name, wanted in weights(number).items():
        assert torch.equal(weights(listed)[name], wanted), name


def test_rewards_of_tokens_give_each_token_the_sum_of_what_follows_it(tiny_model_dir, tmp_path):
    seen: list[Any] = []

    def watch(module: Any) -> None:
        original = module.mark_tokens
        module.mark_tokens = lambda experience: seen.append(experience) or original(experience)

    module = fit(tiny_model_dir, tmp_path, rewards=[per_token], on_module=watch, scale_rewards="none")
    (experience,) = seen
    ids, group = experience.rollouts.completion_ids, experience.rollouts.group[experience.rollouts.token_rows()]
    assert experience.advantages.shape == ids.shape
    entries = (ids % 2).double()
    for prompt in group.unique():
        entries[group == prompt] -= entries[group == prompt].mean()
    lengths = experience.rollouts.completion_lengths.tolist()
    wanted = [part[t:].sum() for part in entries.split(lengths) for t in range(len(part))]
    torch.testing.assert_close(experience.advantages, torch.stack(wanted).float(), rtol=1e-5, atol=1e-6)
    assert module.last_step.advantages.shape == (12,)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "clip_cov", "advantages": "rloo"},
        {"loss_type": {"class_path": "kl_cov", "init_args": {"kl_cov_ratio": 0.2}}, "num_iterations": 2},
        {"loss_type": "dppo", "advantages": "reinforce_plus_plus_baseline"},
    ],
)
def test_a_loss_with_settings_of_its_own_trains(tiny_model_dir, tmp_path, settings):
    updates = settings.get("num_iterations", 1)
    module = fit(tiny_model_dir, tmp_path, max_steps=updates, **settings)
    assert module.step_metrics["grad_norm"] > 0
    untrained = fit(
        tiny_model_dir, tmp_path, max_steps=updates, optimizer=lambda p: torch.optim.SGD(p, lr=0.0), **settings
    )
    assert any(not torch.equal(weights(module)[name], value) for name, value in weights(untrained).items())


@pytest.mark.parametrize("size", [5, 13])
def test_an_override_that_returns_advantages_of_another_shape_is_refused(tiny_model_dir, tmp_path, size):
    def spoil(module: Any) -> None:
        module.advantages = lambda *_: torch.zeros(size)

    with pytest.raises(ValueError, match=rf"The advantages have shape \({size},\), but the step has 12 completions"):
        fit(tiny_model_dir, tmp_path, on_module=spoil)
