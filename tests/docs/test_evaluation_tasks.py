"""The tasks of lm-eval and Inspect in examples/evaluate; the harnesses run where they are installed."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from grpo_lightning.rewards import AccuracyReward

ROOT = Path(__file__).parents[2]
TASK = yaml.safe_load((ROOT / "examples" / "evaluate" / "arithmetic.yaml").read_text())
INSPECT = ROOT / "examples" / "evaluate" / "arithmetic.py"
MODEL = ROOT / "assets" / "quickstart" / "model"
BEFORE = 0.3425
"""Strict held-out accuracy of the model before training, as the quickstart prints it, up to a prompt on which machines differ."""


def patterns() -> dict[str, str]:
    """The regular expression of each harness's task."""
    calls = [node for node in ast.walk(ast.parse(INSPECT.read_text())) if isinstance(node, ast.Call)]
    (found,) = [call.args[0].value for call in calls if getattr(call.func, "id", "") == "pattern"]
    return {"lm-eval": TASK["filter_list"][0]["filter"][0]["regex_pattern"], "Inspect": found}


@pytest.mark.parametrize("harness", ["lm-eval", "Inspect"])
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<think>0+2=2,1=1</think><answer>12</answer>", "12"),
        ("<think></think><answer></answer>", ""),
        ("<think>0+2=2</think>12", None),
        ("<think>0+2=2</think><answer><answer>12</answer>", None),
        ("<think>0+2=2</think><answer>12</answer> yes", "12"),
        ("<answer>12</answer>", "12"),
    ],
)
def test_an_answer_counts_as_the_runs_strict_reward_reads_it(harness, text, found):
    match = re.search(patterns()[harness], text)
    assert (match[1] if match else None) == found
    strict = AccuracyReward(mode="exact", extraction="strict")
    assert strict(prompts=["10+2="], completions=[text], ground_truth=["12"]) == [float(found == "12")]


def test_the_task_reads_columns_that_every_held_out_row_has():
    rows = [json.loads(line) for line in (ROOT / TASK["dataset_kwargs"]["data_files"]).read_text().splitlines()]
    assert TASK["doc_to_text"] == "{{prompt[0]['content']}}" and TASK["doc_to_target"] == "{{ground_truth}}"
    assert all(len(row["prompt"]) == 1 and row["ground_truth"].isdigit() for row in rows)


def documented(program: str, tmp_path: Path) -> str:
    """What the documented command of a harness prints about the model before training."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    text = (ROOT / "docs" / "report.md").read_text().replace("\\\n", " ")
    (command,) = re.findall(rf"^{program} .*$", text, re.MULTILINE)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "INSPECT_LOG_DIR": str(tmp_path), "COLUMNS": "140"}
    words = command.replace("=exported", f"={MODEL}").split()
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_lm_eval_finds_the_accuracy_that_the_run_does(tmp_path):
    found = re.search(r"exact_match\W+(0\.\d+)", documented("lm_eval", tmp_path))
    assert float(found[1]) == pytest.approx(BEFORE, abs=0.006)


def test_inspect_finds_the_accuracy_that_the_run_does(tmp_path):
    found = re.findall(r"^accuracy\s+(0\.\d+)", documented("inspect", tmp_path), re.MULTILINE)
    assert float(found[-1]) == pytest.approx(BEFORE, abs=0.006)
