from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import open_browser
from report_runs import HOSTILE, completion_row, write_completions, write_metrics


@pytest.fixture(scope="session")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the browser puts what a page saves."""
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Iterator[Any]:
    """One browser for all tests of pages."""
    with open_browser(tmp_path_factory.mktemp("profile")) as driver:
        driver.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
        yield driver


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps with one healthy, one dead and one hostile group, seen at steps 1 and 6."""
    run = tmp_path_factory.mktemp("runs") / "small"
    metrics = [
        {"step": s, "reward": s / 5, "entropy": 0.5, "kl": 0.1, "step_time": 1.5, "time/train": 1.0, "val/accuracy": 0.5,
         "completions/mean_length": 4 + s, "frac_reward_zero_std": 0.9, "rewards/accuracy/errors": 2.0}
        for s in range(6)
    ]  # fmt: skip
    write_metrics(run, 0, metrics)
    (run / "logs" / "version_0" / "config.yaml").write_text("model:\n  beta: 0.04\n")
    rows = []
    for step in (0, 5):
        says = ["the answer is six", "it must be seven"] if step == 0 else ["the answer is nine", "it is surely nine"]
        rows += [completion_row(step, 11, s, completion=says[s], reward=float(s), advantage=s - 0.5) for s in range(2)]
        rows += [completion_row(step, 12, s, reward=0.25, advantage=0.0, truncated=s == 0) for s in range(2)]
        rows += [completion_row(step, 13, s, prompt=HOSTILE, completion=HOSTILE, reward=None) for s in range(2)]
    write_completions(run, rows)
    return run
