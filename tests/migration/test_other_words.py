"""Runs that are told in other words than TRL 1.16's: older keys, open-r1's keys, commands. Each beside TRL's own run of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recorded_runs import Recorded, run_migrated, run_trl, write_config

EVALUATED = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
CPU_ALONE = {"overwrite_output_dir": True, "num_processes": 1, "wandb_project": "sums"}


def assert_the_same(ours: Recorded, theirs: Recorded) -> None:
    assert ours.learning_rates == pytest.approx(theirs.learning_rates, abs=1e-12)
    assert ours.prompts == theirs.prompts
    assert ours.evaluated.keys() == theirs.evaluated.keys()
    assert (ours.checkpoints, ours.trained, ours.objective) == (theirs.checkpoints, theirs.trained, theirs.objective)


def test_keys_of_older_trl_run_with_the_defaults_of_their_time(tiny_model_dir: Path, tmp_path: Path, monkeypatch):
    older = CPU_ALONE | {
        "evaluation_strategy": "steps",  # gone after 0.17
        "eval_steps": 1,
        "torch_dtype": "float32",
        "max_prompt_length": 64,
        "warmup_ratio": 0.5,
        "save_steps": 0.5,
        "save_strategy": "steps",
        "max_steps": 4,
    }
    newer = EVALUATED | {"dtype": "float32", "warmup_steps": 0.5, "save_steps": 0.5, "max_steps": 4}
    newer |= {"beta": 0.04, "temperature": 0.9, "loss_type": "bnpo", "top_k": 50}
    theirs = run_trl(write_config(tmp_path / "trl", tiny_model_dir, newer), monkeypatch)
    ours = run_migrated(write_config(tmp_path / "ours", tiny_model_dir, older))
    assert_the_same(ours, theirs)
    assert ours.objective["beta"] == 0.04


def test_open_r1s_prompts_and_rewards_run_as_trl_runs_what_is_left_of_them(tiny_model_dir, tmp_path, monkeypatch):
    system = "You add numbers."
    funcs = ["tag_count", "recorded_runs.recorded_reward"]
    settings: dict[str, Any] = {"reward_funcs": funcs, "reward_weights": [0.2, 0.5], "eval_strategy": "no"}
    config = write_config(
        tmp_path / "ours",
        tiny_model_dir,
        settings | {"system_prompt": system, "dataset_prompt_column": "problem", "dataset_config": None},
    )
    for file in (config.parent / "data").iterdir():
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps({"problem": row["prompt"]}) + "\n" for row in rows))
    left = {"reward_weights": [0.5], "conversational": system, "eval_strategy": "no"}
    theirs = run_trl(write_config(tmp_path / "trl", tiny_model_dir, left), monkeypatch)
    ours = run_migrated(config)
    assert_the_same(ours, theirs)
    assert all(text.startswith(system) for counts in theirs.prompts.values() for text in counts)


@pytest.mark.parametrize(
    "command",
    [
        "trl grpo --config {} --learning-rate 2e-3 --max_steps=3",
        "accelerate launch grpo.py --config {} --learning_rate 2e-3 --max-steps 3",
    ],
)
def test_a_command_runs_as_its_arguments_say(command: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch):
    told = EVALUATED | {"learning_rate": 2e-3, "max_steps": 3}
    theirs = run_trl(write_config(tmp_path / "trl", tiny_model_dir, dict(told)), monkeypatch)
    config = write_config(tmp_path / "ours", tiny_model_dir, dict(EVALUATED))
    ours = run_migrated(config, command=command.format(config).split())
    assert_the_same(ours, theirs)
    assert len(ours.learning_rates) == 3


def test_a_mixture_of_datasets_has_as_many_rows_of_each(tiny_model_dir: Path, tmp_path: Path, monkeypatch):
    runs = {}
    for side in ("trl", "ours"):
        config = write_config(tmp_path / side, tiny_model_dir, {"dataset_name": None, "max_steps": 6})
        data = config.parent / "data"
        lines = (data / "train.jsonl").read_text().splitlines(keepends=True)
        entries = []
        for name, part in (("one", lines[:4]), ("two", lines[4:])):
            (data / f"{name}.jsonl").write_text("".join(part))
            entries.append({"path": "json", "data_files": str(data / f"{name}.jsonl")})
        with config.open("a") as file:
            file.write("datasets: " + json.dumps(entries) + "\n")
        runs[side] = config
    theirs = run_trl(runs["trl"], monkeypatch)
    ours = run_migrated(runs["ours"])
    # TRL reads one dataset behind the other, ours gives each step its share of both: an epoch has the same rows.
    totals = [sum(record.prompts.values(), start=type(record.prompts[0])()) for record in (ours, theirs)]
    assert totals[0] == totals[1]
    assert len(totals[0]) == 12
    assert ours.learning_rates == pytest.approx(theirs.learning_rates, abs=1e-12)
