"""A dataset of the hub that was read once is read again without the hub, with its values as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hub_server import hub

ROOT = Path(__file__).parents[3]
ROWS = [{"prompt": f"{n}+1=", "ground_truth": n + 1, "day": "2024-05-01"} for n in range(3)]
TRAIN = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
FILES = {"README.md": b"# sums\n", "train.jsonl": TRAIN, "test.jsonl": TRAIN.splitlines()[0] + b"\n"}
READ = """
import json, sys
from grpo_lightning.datamodules.sources.find_dataset import find_dataset
for split in sys.argv[1:]:
    try:
        rows = find_dataset("toy/sums", split).load()
        print(json.dumps([rows[place] for place in range(len(rows))]))
    except ValueError as error:
        print(json.dumps(str(error)))
"""


def read(home: Path, *splits: str, **environment: str) -> list[Any]:
    """What a process of its own finds: the libraries read their settings once."""
    places = {"PYTHONPATH": str(ROOT), "HF_HOME": str(home), "HF_DATASETS_CACHE": str(home / "datasets")}
    command = [sys.executable, "-c", READ, *splits]
    done = subprocess.run(command, env=os.environ | places | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_json_of_the_hub_is_read_again_offline(tmp_path: Path) -> None:
    """Only what the library had turned into Arrow was found: JSON, read as it is, could not be reached."""
    with hub("toy/sums", FILES) as address:
        assert read(tmp_path, "train", "test", HF_ENDPOINT=address, HF_HUB_OFFLINE="0") == [ROWS, ROWS[:1]]
    offline = read(tmp_path, "train", "test[:1]", "validation", HF_HUB_OFFLINE="1")
    assert offline[:2] == [ROWS, ROWS[:1]]
    assert "validation" in offline[2] and "train" in offline[2]  # which splits there are
