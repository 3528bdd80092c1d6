"""The notebooks run from the first cell to the last, and show what their texts say."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="notebooks need nbformat and nbclient")
nbclient = pytest.importorskip("nbclient")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a notebook in a folder like the repository's; what its cells printed comes back as one text."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    (tmp_path / "notebooks").mkdir()

    def run(name: str) -> str:
        path = Path(shutil.copy(ROOT / "notebooks" / name, tmp_path / "notebooks"))
        notebook = nbformat.read(path, as_version=4)
        nbclient.NotebookClient(
            notebook, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
        ).execute()
        outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
        return "".join(output.text for output in outputs if output.get("name") == "stdout")

    return run


def test_the_first_run_learns_and_its_export_answers(run):
    printed = run("first_run.ipynb")
    before, after = map(
        float, re.search(r"held-out accuracy: ([\d.]+)% before, ([\d.]+)% after 30 steps", printed).groups()
    )
    assert after > before + 10
    assert re.search(r"<answer>\d+</answer>$", printed.strip())


def test_another_reward_rises_and_the_report_is_written(run, tmp_path):
    printed = run("another_reward.ipynb")
    assert "[0.296875, 0.703125, 0.96875]" in printed  # 45, 19 and 2 characters of 64
    first, last = map(float, re.search(r"^reward +([\d.]+) +-> +([\d.]+)", printed, re.MULTILINE).groups())
    assert last > first
    assert len(re.findall(r"^\d\.\d{3}  accuracy [01]  ", printed, re.MULTILINE)) == 6
    assert (tmp_path / "runs" / "notebook_reward" / "report.html").stat().st_size > 100_000


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells if cell.cell_type == "code")
