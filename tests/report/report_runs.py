"""Run directories made by hand, for tests of the report."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from grpo_lightning.callbacks.completion_rows import completions_schema
from grpo_lightning.commands.report import main

HOSTILE = '<img src=x onerror="document.title=1"></script><script>document.title="hacked"</script>'


def write_metrics(run: Path, launch: int, rows: Sequence[dict[str, Any]], tail: str = "") -> None:
    directory = run / "logs" / f"version_{launch}"
    directory.mkdir(parents=True)
    names = sorted({name for row in rows for name in row})
    with (directory / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
        file.write(tail)


def completion_row(step: int, uid: int, sample: int, **values: Any) -> dict[str, Any]:
    """A row of the schema with one reward called accuracy."""
    reward = values.pop("reward", 1.0)
    row = {
        "step": step,
        "uid": uid,
        "sample": sample,
        "prompt": f"What is {uid}?",
        "completion": f"It is {uid}.",
        "reward": reward,
        "advantage": 0.5,
        "length": 4,
        "prompt_length": 3,
        "truncated": False,
        "mean_logprob": -0.5,
        "columns": json.dumps({"ground_truth": str(uid)}),
        "rewards/accuracy": reward,
    }
    return row | values


def write_completions(run: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One file per step, as the callback writes them."""
    directory = run / "completions"
    directory.mkdir(parents=True, exist_ok=True)
    for step in sorted({row["step"] for row in rows}):
        table = pa.Table.from_pylist([row for row in rows if row["step"] == step], completions_schema(["accuracy"]))
        pq.write_table(table, directory / f"step-{step:08d}.rank0.parquet")


def write_large_run(run: Path, steps: int, prompts: int, samples: int) -> Path:
    """Completions, steps x prompts x samples, completions of some 300 characters; the same prompts come up at every step."""
    draw = random.Random(0)
    vocabulary = [f"word{i}" for i in range(400)]
    rows: list[dict[str, Any]] = []
    directory = run / "completions"
    directory.mkdir(parents=True)
    for step in range(steps):
        rows = []
        for uid in range(prompts):
            right = draw.random() < 0.2 + 0.7 * step / steps
            for sample in range(samples):
                text = " ".join(draw.choices(vocabulary, k=45))
                reward = float(right and sample % 2)
                rows.append(completion_row(step, uid, sample, completion=text, reward=reward, advantage=reward - 0.5))
        pq.write_table(
            pa.Table.from_pylist(rows, completions_schema(["accuracy"])), directory / f"step-{step:08d}.rank0.parquet"
        )
    metrics = [
        {"step": s, "reward": s / steps, "completions/mean_length": 45.0, "step_time": 2.0} for s in range(steps)
    ]
    write_metrics(run, 0, metrics)
    return run


def report(tmp_path: Path, *runs: Path) -> Path:
    """The page of runs."""
    page = tmp_path / "report.html"
    assert main([*map(str, runs), "--output", str(page)]) == 0
    return page
