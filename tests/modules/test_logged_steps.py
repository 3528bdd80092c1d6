"""What loggers get of a step: its own numbers, and none of an earlier one."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from runs import fit, share_of_digits


def rare(completions: list[str], trainer_state: Any, **columns: Any) -> list[float | None]:
    """Known of the first step alone."""
    return [1.0 if trainer_state.global_step == 0 else None for _ in completions]


def test_a_metric_that_a_step_lacks_is_not_logged_with_the_value_of_an_earlier_step(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Lightning keeps what was logged until the epoch ends; a run that was resumed in between has nothing to keep."""
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    trainer = {"logger": logger, "log_every_n_steps": 1}
    fit(tiny_model_dir, tmp_path, 3, trainer=trainer, rewards=[share_of_digits, rare])  # of an epoch of four
    with (Path(logger.log_dir) / "metrics.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["loss"]]
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert [row["rewards/rare/mean"] for row in rows] == ["1.0", "", ""]
    assert all(row["rewards/share_of_digits/mean"] for row in rows)
