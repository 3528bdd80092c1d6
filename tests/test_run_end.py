"""The end of a run: what is left on disk, with which status, and what a second start makes of it."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_runs import CommandRun
from runs import write_prompts
from safetensors.torch import load_file

from grpo_lightning.distributed.stop_signals import keep_writable

REWARDS = """
import os, time

def digits(completions, trainer_state, **columns):
    if os.environ.get("STOP_AT") == str(trainer_state.global_step):
        open(os.environ["REACHED"], "w").close()
        time.sleep(float(os.environ.get("WAIT", 60)))
    return [sum(c.isdigit() for c in text) / max(1, len(text)) for text in completions]

def forgets(completions, **columns):
    [len(text) for text in completions]

def wanders(completions, **columns):
    os.chdir("/")
    return [len(text) for text in completions]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ends.py").write_text(REWARDS)
    write_prompts(tmp_path / "train.jsonl")
    return tmp_path


def start(folder: Path, model: Path, *arguments: str, **environment: str) -> CommandRun:
    """A run in ``folder``/run, by a relative path as the shipped configs have it; 3 prompts a step, 4 steps an epoch."""
    options = {
        "trainer.accelerator": "cpu",
        "trainer.max_steps": 3,
        "trainer.default_root_dir": "run",
        "trainer.enable_progress_bar": "false",
        "model.model_name_or_path": model,
        "model.generator": "TransformersGenerator",
        "model.rewards": "ends.digits",
        "model.num_generations": 4,
        "model.max_completion_length": 8,
        "model.optimizer": "torch.optim.AdamW",
        "model.optimizer.lr": 0.001,
        "data.dataset": "train.jsonl",
        "data.batch_size": 3,
        "checkpoint.every_n_train_steps": 100,
    }
    given = [f"--{name}={value}" for name, value in options.items()]
    return CommandRun(folder, "fit", *given, *arguments, REACHED=str(folder / "reached"), **environment)


def run(folder: Path, model: Path, *arguments: str) -> tuple[int, str]:
    return start(folder, model, *arguments).finish()


def last(folder: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)
    return saved


def test_the_last_checkpoint_is_what_was_exported_and_goes_on_where_it_ended(tiny_model_dir, folder):
    whole = folder / "whole"
    whole.mkdir()
    (whole / "ends.py").write_text(REWARDS)
    write_prompts(whole / "train.jsonl")
    assert run(whole, tiny_model_dir, "--trainer.max_steps=5")[0] == 0
    status, output = run(folder, tiny_model_dir, "--checkpoint.every_n_train_steps=2", "--ckpt_path=last")
    assert status == 0, output
    assert next(line for line in output.splitlines() if line.startswith("--ckpt_path")) == (
        f"--ckpt_path last: {folder / 'run'} has no checkpoint. The run starts anew, from step 0."
    )
    exported = load_file(folder / "run/hf/last/model.safetensors")
    for name, weight in last(folder)["state_dict"].items():
        if (key := name.removeprefix("policy.")) in exported:
            assert torch.equal(weight, exported[key]), name
    assert last(folder)["steps_done"] == 3
    for steps in (4, 5):  # each further part used to miss an epoch
        assert run(folder, tiny_model_dir, f"--trainer.max_steps={steps}", "--ckpt_path=last")[0] == 0
    one, parts = (load_file(place / "run/hf/last/model.safetensors") for place in (whole, folder))
    assert all(torch.equal(one[name], parts[name]) for name in one)


def test_an_export_that_cannot_be_written_costs_no_checkpoint(tiny_model_dir, folder):
    (folder / "a_file").touch()
    status, output = run(folder, tiny_model_dir, "--export.dirpath", str(folder / "a_file/x"))
    assert status == 1 and "Traceback" not in output
    assert "could not be written" in output and "python -m grpo_lightning export RUN_DIR" in output
    assert last(folder)["steps_done"] == 3


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_run_after_its_step_with_a_checkpoint_and_its_status(number, status, tiny_model_dir, folder):
    process = start(folder, tiny_model_dir, STOP_AT="1", WAIT="1")
    process.wait_for(folder / "reached")
    process.send_signal(number)
    found, output = process.finish()
    assert found == status and "Continue with --ckpt_path last." in output and "Traceback" not in output
    assert last(folder)["steps_done"] == 2
    assert not (folder / "run/hf").exists()


def test_a_terminal_that_is_gone_does_not_end_the_step():
    ours, theirs = os.openpty()
    keep_writable(theirs)
    assert b"SIGHUP: the run ends after this step" in os.read(ours, 1000)
    os.close(ours)
    with pytest.raises(OSError, match="Input/output error"):
        os.write(theirs, b"step 2")
    keep_writable(theirs)
    assert os.write(theirs, b"step 2") == 6
    os.close(theirs)


def test_a_second_interrupt_does_not_wait_for_the_step(tiny_model_dir, folder):
    process = start(folder, tiny_model_dir, STOP_AT="1", WAIT="600")
    process.wait_for(folder / "reached")
    process.send_signal(signal.SIGINT)
    while "\nCtrl-C" not in process.output:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    status, output = process.finish()
    assert status == 130, output
    assert not (folder / "run/checkpoints/last.ckpt").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message", "steps"),
    [
        (
            ["--model.rewards=ends.forgets"],
            1,
            "In 3 steps no reward applied to any completion: all of them returned None, raised",
            3,
        ),
        (["--trainer.max_steps=0"], 2, "trainer.max_steps=0 trains nothing", None),
        (["--ckpt_path=best"], 2, "checkpoint.monitor is not set", None),
    ],
)
def test_a_run_that_trains_nothing_says_so_and_exports_nothing(
    arguments, status, message, steps, tiny_model_dir, folder
):
    found, output = run(folder, tiny_model_dir, *arguments)
    assert (found, "Traceback" in output) == (status, False), output
    assert message in output
    assert not (folder / "run/hf").exists()
    assert steps is None or last(folder)["steps_done"] == steps


def test_best_is_the_checkpoint_that_the_monitor_liked_most_in_a_new_process_too(tiny_model_dir, folder):
    saving = ("--checkpoint.monitor=reward", "--checkpoint.mode=max", "--checkpoint.every_n_train_steps=1")
    status, output = run(folder, tiny_model_dir, *saving)
    assert status == 0, output
    with (folder / "run/logs/version_0/metrics.csv").open() as lines:
        rewards = {int(row["step"]): float(row["reward"]) for row in csv.DictReader(lines) if row["reward"]}
    (scored,) = [path for path in (folder / "run/checkpoints").glob("*.ckpt") if path.name != "last.ckpt"]
    best = torch.load(scored, weights_only=True)["steps_done"]
    assert rewards[best - 1] == max(rewards.values())  # metrics count from 0
    assert best != 3  # or last.ckpt would do as well
    (folder / "run/checkpoints/last.ckpt").touch()  # it is newer
    status, output = run(folder, tiny_model_dir, *saving, "--ckpt_path=best", "--trainer.max_steps=4")
    assert status == 0, output
    assert last(folder)["steps_done"] == 4
    assert str(scored) in output


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_lives(tiny_model_dir, folder):
    first = start(folder, tiny_model_dir, STOP_AT="1", WAIT="600")
    first.wait_for(folder / "reached")
    status, output = run(folder, tiny_model_dir)
    assert status == 1 and "Traceback" not in output
    assert f"belongs to a run that is going on: process {first.pid} on" in " ".join(output.split())
    first.send_signal(signal.SIGKILL)  # leaves its lock behind
    first.finish()
    status, output = run(folder, tiny_model_dir)
    assert status == 0, output
    assert json.loads((folder / "run/run.lock").read_text())["pid"] != first.pid


def test_a_reward_that_changes_the_working_directory_moves_nothing_of_the_run(tiny_model_dir, folder):
    status, output = run(folder, tiny_model_dir, "--model.rewards=ends.wanders", "--export.dirpath=out")
    assert status == 0, output
    assert "changed the working directory to /" in output
    assert last(folder)["steps_done"] == 3 and (folder / "out/last/model.safetensors").exists()
    assert len(list((folder / "run/completions").iterdir())) == 3


def test_a_changed_learning_rate_is_used(tiny_model_dir, folder):
    assert run(folder, tiny_model_dir)[0] == 0
    again = ("--trainer.max_steps=5", "--ckpt_path=last", "--model.optimizer.lr=0.25")
    status, output = run(folder, tiny_model_dir, *again)
    assert status == 0 and "lr was 0.001, is 0.25" in " ".join(output.split())
    assert last(folder)["optimizer_states"][0]["param_groups"][0]["lr"] == 0.25
    other = ("--trainer.max_steps=6", "--ckpt_path=last", "--model.optimizer=torch.optim.SGD")
    status, output = run(folder, tiny_model_dir, *other)
    assert status == 1 and "Traceback" not in output
    assert "class_path was torch.optim.AdamW, is torch.optim.SGD" in " ".join(output.split())
    adapter = ("--trainer.max_steps=6", "--ckpt_path=last", "--model.finetuning_type=lora")
    status, output = run(folder, tiny_model_dir, *adapter)
    assert status == 1 and "Traceback" not in output
    assert "The checkpoint holds other weights than this config trains" in output


def test_a_run_that_has_nothing_left_to_train_says_what_ended_it(tiny_model_dir, folder):
    weights_alone = ("--checkpoint.save_weights_only=true", "--trainer.default_root_dir=alone")
    assert run(folder, tiny_model_dir, *weights_alone)[0] == 0
    status, output = run(folder, tiny_model_dir, *weights_alone, "--ckpt_path=last", "--trainer.max_steps=4")
    assert status == 1 and "Traceback" not in output
    assert "it lacks lr_schedulers, optimizer_states. One that checkpoint.save_weights_only=true" in output
    assert run(folder, tiny_model_dir)[0] == 0
    status, output = run(folder, tiny_model_dir, "--ckpt_path=last")
    assert status == 0 and "step 3 is where trainer.max_steps=3 ends this run" in output
    limit = ("--trainer.max_time=00:00:00:01", "--trainer.max_steps=100", "--ckpt_path=last")
    assert run(folder, tiny_model_dir, *limit)[0] == 0
    status, output = run(folder, tiny_model_dir, *limit)
    assert status == 0 and "trainer.max_time, which counts earlier launches too" in output
