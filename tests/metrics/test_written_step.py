"""Numbers of a step on written data, worked out by hand."""

from __future__ import annotations

import time

import pytest
import torch

from grpo_lightning.metrics.written_step import written_step


@pytest.mark.parametrize(("norm", "shown", "skipped"), [(3.0, 3.0, 0.0), (float("nan"), 0.0, 1.0)])
def test_a_written_step_tells_its_norm_its_skipped_update_and_its_speed(norm, shown, skipped):
    changed = torch.tensor([1.0, 0.0, 0.0, 0.0])
    numbers = written_step({"loss": 2.0}, torch.tensor(norm), 30, time.perf_counter() - 2.0, 1e-3, changed)
    seconds = numbers.pop("step_time")
    assert seconds >= 2.0
    assert numbers.pop("tokens_per_second") == pytest.approx(30 / seconds)
    assert numbers == {
        "loss": 2.0,
        "update/changed_since_start": 0.25,
        "grad_norm": shown,
        "skipped_updates": skipped,
        "learning_rate": 1e-3,
    }


def test_a_written_step_tells_nothing_of_weights_that_nobody_looks_at():
    numbers = written_step({"loss": 2.0}, torch.tensor(1.0), 30, time.perf_counter() - 2.0, 1e-3)
    assert "update/changed_since_start" not in numbers
