"""What is logged of preferences, by hand, and without the host's waiting for it."""

from __future__ import annotations

import pytest
import torch

from grpo_lightning.algorithm.preferences import make_preference_loss
from grpo_lightning.algorithm.preferences.base import PreferenceScores
from grpo_lightning.algorithm.preferences.metrics import logged, logged_rewards, mean_entries


def make_scores(is_chosen: list[bool], device: str = "cpu") -> PreferenceScores:
    logps = torch.tensor([-1.0, -3.0, -2.0, -6.0], requires_grad=True)
    values = (logps, torch.tensor([-2.0, -2.0, -4.0, -4.0]), torch.ones(4), torch.tensor(is_chosen), torch.zeros(()))
    return PreferenceScores(*(each.to(device) for each in values))


def test_good_and_bad_completions_have_means_of_their_own():
    loss = make_preference_loss("kto", {"beta": 0.5})
    scores = make_scores([True, False, True, True])
    found = mean_entries(logged(loss, scores, torch.zeros(4))).result()
    assert found["logps/chosen"] == pytest.approx((-1 - 2 - 6) / 3) and found["logps/rejected"] == -3.0
    assert found["rewards/chosen"] == pytest.approx(0.5 * (1 + 2 - 2) / 3)
    assert found["rewards/rejected"] == -0.5
    assert "rewards/margins" not in found


def test_held_out_completions_are_those_of_the_kind():
    loss = make_preference_loss("kto", {"beta": 0.5})
    entries = logged(loss, make_scores([True, False, True, True]), torch.zeros(4))
    assert entries["logps/chosen"].tolist() == [-1.0, -2.0, -6.0] and entries["logps/rejected"].tolist() == [-3.0]
    assert entries["loss"].tolist() == [0.0] * 4


@pytest.mark.parametrize("name", ["sigmoid", "kto"])
def test_no_number_of_a_pass_has_to_reach_the_host_for_its_metrics(name):
    # On a GPU the host would wait for the forward pass, and the backward pass would be queued late. "meta" has no values.
    loss, scores = make_preference_loss(name, {}), make_scores([True, False, True, False], "meta")
    found = mean_entries(logged(loss, scores, loss.per_example(scores)))
    assert {"rewards/chosen", "logps/rejected", "loss"} <= found.means.keys()
    assert all(pair.shape == (2,) and not pair.requires_grad for pair in found.means.values())
    values = torch.zeros(2, device="meta")
    assert mean_entries(logged_rewards(scores.ref_logps, values)).means["accuracy"].shape == (2,)
