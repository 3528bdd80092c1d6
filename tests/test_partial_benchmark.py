"""The arithmetic of benchmarks/partial_rollouts.py by hand."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "benchmarks")]

from partial_rollouts import figures  # noqa: E402


def test_rates_are_of_all_steps_together():
    rows = [
        {"step_time": "2.0", "tokens_per_second": "100", "time/generate": "1.5", "sampling/age/mean": "0.5"},
        {"step_time": "3.0", "tokens_per_second": "200", "time/generate": "2.5", "sampling/age/mean": "0.7"},
    ]
    found = figures(rows, completions_per_step=10)
    assert (found["completions_per_second"], found["tokens_per_second"]) == (4.0, 160.0)  # 20 and 200 + 600 in 5 s
    assert (found["mean_length"], found["step_seconds"], found["time/generate"]) == (40.0, 2.5, 2.0)
    assert found["sampling/age/mean"] == 0.6
