"""The arithmetic of benchmarks/partial_rollouts.py by hand, and the names of verl's settings."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "peers")]

import verl_run  # noqa: E402
from partial_rollouts import figures  # noqa: E402
from sides.workload import WORKLOADS  # noqa: E402


def test_rates_are_of_all_steps_together():
    rows = [
        {"step_time": "2.0", "tokens_per_second": "100", "time/generate": "1.5", "sampling/age/mean": "0.5"},
        {"step_time": "3.0", "tokens_per_second": "200", "time/generate": "2.5", "sampling/age/mean": "0.7"},
    ]
    found = figures(rows, completions_per_step=10)
    assert (found["completions_per_second"], found["tokens_per_second"]) == (4.0, 160.0)  # 20 and 200 + 600 in 5 s
    assert (found["mean_length"], found["step_seconds"], found["time/generate"]) == (40.0, 2.5, 2.0)
    assert found["sampling/age/mean"] == 0.6


def test_settings_that_a_peers_configuration_does_not_have_are_named(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("data: {train_files: null}\ntrainer: {nnodes: 1}\n")
    assert verl_run.unknown_names(["data.train_files", "data.nothing", "trainer.nnodes.x"], config) == [
        "data.nothing",
        "trainer.nnodes.x",
    ]


def test_verl_is_given_the_sizes_of_the_workload():
    given = verl_run.overrides(WORKLOADS["0.5b"], Path("model"), Path("prompts.parquet"), 5)
    assert given["data.train_batch_size"] == 64 and given["actor_rollout_ref.rollout.n"] == 8
    assert given["actor_rollout_ref.rollout.max_num_seqs"] == 512
    assert given["data.max_response_length"] == 1024
