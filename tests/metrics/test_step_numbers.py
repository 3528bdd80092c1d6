from __future__ import annotations

import pytest

from grpo_lightning.metrics.step_report import StepNumbers


@pytest.mark.parametrize("is_ahead", [False, True])
def test_throughput_of_the_engine_is_known_where_a_step_samples_its_own_batch(is_ahead):
    sums = {
        "tokens/completion": 600.0,
        "tokens/prompt_and_completion": 900.0,
        "step_time": 6.0,
        "time/generate": 2.0,
    }
    if is_ahead:
        sums["sampling/staleness_steps"] = 1.0
    numbers = StepNumbers().complete(sums, num_updates=1)
    assert numbers.get("generation/tokens_per_second") == (None if is_ahead else 300.0)
