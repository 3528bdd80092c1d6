"""When a run says that its passes wait for the host."""

from __future__ import annotations

import os
from itertools import chain, repeat

import pytest
import torch
from runs import train_stage
from stage_cases import STAGES

from grpo_lightning.training.host_watch import STEPS, WARM_UP, HostWatch


def told(steps):
    """What is told of steps that are given as (seconds until their passes are queued, seconds of waiting for them)."""
    times, now = [], 0.0
    for queued, waited in steps:
        times += [now, now + queued, now + queued + waited]
        now += queued + waited + 100.0  # sampling, which does not count
    found = []
    watch = HostWatch(lambda *values: found.append(values), clock=iter(times).__next__)
    for _ in steps:
        watch.begin()
        watch.begin()  # of a second pass, at whose time nobody looks
        with watch.waiting():
            pass
    return found


def test_it_tells_once_and_after_the_first_steps():
    bound = list(repeat((1.0, 0.0), WARM_UP + STEPS))
    assert told(bound[:-1]) == []
    assert told(bound) == [(1.0, 0.0)]
    assert told(bound * 3) == [(1.0, 0.0)]


def test_the_median_step_is_told():
    steps = chain(repeat((9.0, 9.0), WARM_UP), [(1.0, 0.1), (3.0, 0.0), (1.9, 0.1), (0.5, 0.0), (4.0, 0.4)])
    [(seconds, share)] = told(list(steps))
    assert seconds == pytest.approx(2.0)
    assert share == pytest.approx(0.05)


def test_a_step_that_the_gpu_bounds_starts_the_count_anew():
    bound, busy = (1.0, 0.1), (1.0, 0.2)
    assert told([bound] * (WARM_UP + STEPS - 1) + [busy] + [bound] * (STEPS - 1)) == []
    assert len(told([bound] * (WARM_UP + STEPS - 1) + [busy] + [bound] * STEPS)) == 1


def test_a_step_without_passes_is_none():
    found = []
    watch = HostWatch(lambda *values: found.append(values), clock=lambda: 0.0)
    for _ in range(WARM_UP + STEPS):
        with watch.waiting():
            pass
    assert found == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="other workers keep the GPU busy: run it without -n")
@pytest.mark.parametrize("settings", [{}, {"torch_compile": True}, {"cuda_graphs": True}])
def test_a_run_on_a_gpu_says_once_that_the_host_bounds_it_and_what_helps(settings, tiny_model_dir, tmp_path, caplog):
    caplog.set_level("INFO")
    options = {"trainer": {"accelerator": "gpu", "precision": "bf16-mixed"}} | settings
    train_stage(*STAGES["sft"], tiny_model_dir, tmp_path, 2 * (WARM_UP + STEPS), **options)
    told = [record.getMessage() for record in caplog.records if "bound by the host" in record.getMessage()]
    assert len(told) == 1 if not settings else len(told) <= 1
    assert all("model.cuda_graphs=true launches" in line and "cuda_graphs" not in settings for line in told)
    assert ["model.torch_compile=true has" in line for line in told] == [not settings] * len(told)
    assert "could not record" not in caplog.text


def test_a_run_on_a_cpu_says_nothing_of_it(tiny_model_dir, tmp_path, caplog):
    caplog.set_level("INFO")
    train_stage(*STAGES["sft"], tiny_model_dir, tmp_path, WARM_UP + STEPS + 1)
    assert "bound by the host" not in caplog.text
