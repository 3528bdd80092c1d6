"""Percentiles are those of all ranks' completions together, by the nearest rank."""

from __future__ import annotations

import torch

from grpo_lightning.algorithm.metric_sums import MetricSums
from grpo_lightning.metrics.step_report import StepReport


def test_percentiles_of_two_ranks_are_those_of_all_their_values():
    short = MetricSums(samples={"completions/length": torch.tensor([1.0, 2.0, 3.0])})
    long = MetricSums(samples={"completions/length": torch.tensor([100.0, 4.0])}, totals={"n": torch.tensor(2.0)})
    assert (short + long).result() == {
        "n": 2.0,
        "completions/length_p50": 3.0,  # 3 of 5, the first that half of them do not exceed
        "completions/length_p90": 100.0,
        "completions/length_p99": 100.0,
    }


def test_numbers_survive_the_way_to_the_host_in_any_mixture():
    sums = MetricSums(
        means={"kl": torch.tensor([6.0, 2.0])},
        minima={"low": torch.tensor(-1.0)},
        samples={"length": torch.tensor([5.0, 7.0]), "age": torch.tensor([], dtype=torch.float64)},
    )
    assert sums.from_vector(sums.to_vector()).result() == {
        "kl": 3.0, "low": -1.0, "length_p50": 5.0, "length_p90": 7.0, "length_p99": 7.0,
    }  # fmt: skip


def test_staleness_of_refilled_groups_is_told_beside_that_of_the_batch_in_flight():
    report = StepReport()
    report.add_entries({"sampling/staleness_steps": torch.tensor([1.0] * 6 + [0.0] * 4)})
    numbers = report.metrics.result()
    assert numbers["sampling/staleness_steps"] == 0.6
    assert [numbers[f"sampling/staleness_steps_{of}"] for of in ("p50", "p90", "p99", "max")] == [1.0, 1.0, 1.0, 1.0]
