"""The scripts that run benchmarks in parts say what their parts are."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.parametrize("arguments", [[], ["tests"], ["nonsense", "out"]])
@pytest.mark.parametrize("script", ["on_one_gpu.sh", "on_two_gpus.sh"])
def test_what_names_no_part_and_no_folder_is_answered_with_the_usage(
    script: str, arguments: list[str], tmp_path: Path
) -> None:
    given = [str(tmp_path / each) if each == "out" else each for each in arguments]
    run = subprocess.run(["bash", script, *given], cwd=BENCHMARKS, capture_output=True, text=True)
    assert run.returncode == 2 and not run.stderr
    assert f"benchmarks/{script} tests OUT" in run.stdout
