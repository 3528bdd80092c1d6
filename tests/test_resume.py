"""A run that is killed goes on as if nothing had happened: same numbers, same weights, bit for bit."""

from __future__ import annotations

import csv
import signal
from pathlib import Path

import pytest
import torch
import yaml
from command_runs import CommandRun
from runs import write_prompts
from safetensors.torch import load_file

STEPS = 9
"""The prompts are seen 2.25 times, so epochs end before, at and after the kill."""
REWARDS = """
import os, random, time

def digits(completions, trainer_state, **columns):
    '''Share of digits plus noise from the global generator; waits at a step so that the test can kill it there.'''
    if os.environ.get("STOP_AT") == str(trainer_state.global_step):
        open("reached", "w").close()
        time.sleep(float(os.environ.get("WAIT", 60)))
    return [sum(c.isdigit() for c in text) / max(1, len(text)) + 0.1 * random.random() for text in completions]
"""


def write_config(folder: Path, model_dir: str | Path) -> Path:
    (folder / "resume_rewards.py").write_text(REWARDS)
    config = {
        "seed_everything": 3,
        "trainer": {
            "default_root_dir": str(folder / "run"),
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": STEPS,
            "enable_progress_bar": False,
            "val_check_interval": 3,
        },
        "model": {
            "model_name_or_path": str(model_dir),
            "rewards": ["resume_rewards.digits"],
            "generator": {"class_path": "TransformersGenerator"},
            "num_generations": 4,
            "max_completion_length": 8,
            "beta": 0.05,
            "sync_ref_model": True,
            "ref_model_sync_steps": 2,
            "num_generations_eval": 2,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
            "lr_scheduler": {
                "class_path": "grpo_lightning.modules.schedules.WarmupSchedule",
                "init_args": {"warmup_steps": 3, "total_steps": 20, "shape": "cosine"},
            },
        },
        "data": {
            "dataset": str(write_prompts(folder / "train.jsonl")),
            "eval_dataset": str(write_prompts(folder / "eval.jsonl", 4)),
            "batch_size": 3,
        },
        "checkpoint": {"every_n_train_steps": 1},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def start(folder: Path, *arguments: str, **environment: str) -> CommandRun:
    return CommandRun(folder, "fit", "--config", str(folder / "run.yaml"), *arguments, **environment)


def finish(run: CommandRun) -> str:
    status, output = run.finish()
    assert status == 0, output
    return output


def logged(folder: Path) -> dict[int, dict[str, str]]:
    """Every logged number but times, as text, by step; later launches overwrite what they repeat."""
    rows: dict[int, dict[str, str]] = {}
    for file in sorted(folder.glob("run/logs/version_*/metrics.csv")):
        with file.open() as lines:
            for row in csv.DictReader(lines):
                timed = ("time", "tokens_per_second", "seconds")
                numbers = {k: v for k, v in row.items() if v and not any(word in k for word in timed)}
                rows.setdefault(int(row["step"]), {}).update(numbers)
    return rows


@pytest.fixture(scope="module")
def uninterrupted(tiny_model_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_config(folder, tiny_model_dir)
    finish(start(folder))
    return folder


@pytest.mark.parametrize("kill_at", [4, 6])
def test_a_killed_run_resumes_bit_for_bit(tiny_model_dir, tmp_path, uninterrupted, kill_at):
    write_config(tmp_path, tiny_model_dir)
    process = start(tmp_path, STOP_AT=str(kill_at))
    process.wait_for(tmp_path / "reached")
    process.send_signal(signal.SIGKILL)
    process.finish()
    go_on_as(uninterrupted, tmp_path)


@pytest.mark.parametrize(
    ("stop_at", "saved_every", "save_last"),
    [(3, 100, "true"), (4, 2, "link")],  # in the evaluation after three steps; in the fifth step
)
def test_a_run_that_a_scheduler_ends_loses_no_step(
    tiny_model_dir, tmp_path, uninterrupted, stop_at, saved_every, save_last
):
    write_config(tmp_path, tiny_model_dir)
    saving = (f"--checkpoint.every_n_train_steps={saved_every}", f"--checkpoint.save_last={save_last}")
    process = start(tmp_path, *saving, STOP_AT=str(stop_at), WAIT="1")
    process.wait_for(tmp_path / "reached")
    process.send_signal(signal.SIGTERM)
    _, output = process.finish()
    assert "Continue with --ckpt_path last." in output and "Traceback" not in output
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert saved["steps_done"] == {3: 3, 4: 5}[stop_at]
    go_on_as(uninterrupted, tmp_path)


def go_on_as(uninterrupted: Path, folder: Path) -> None:
    """Resumes, and compares everything with a run that was never stopped."""
    finish(start(folder, "--ckpt_path", "last"))
    assert logged(folder) == logged(uninterrupted)
    assert len(logged(folder)) == STEPS
    whole, resumed = (load_file(folder / "run/hf/last/model.safetensors") for folder in (uninterrupted, folder))
    assert whole.keys() == resumed.keys()
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name


def test_a_checkpoint_holds_what_training_needs_and_no_more(uninterrupted):
    checkpoint = torch.load(uninterrupted / "run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["steps_done"] == STEPS
    assert len(checkpoint["optimizer_states"]) == len(checkpoint["lr_schedulers"]) == 1
    assert all(name.startswith("policy.") for name in checkpoint["state_dict"])
    assert checkpoint["reference"].keys() == {name.removeprefix("policy.model.") for name in checkpoint["state_dict"]}


def test_another_batch_size_inside_an_epoch_is_refused_in_a_line(tiny_model_dir, tmp_path, uninterrupted):
    write_config(tmp_path, tiny_model_dir)
    checkpoint = str(uninterrupted / "run/checkpoints/last.ckpt")
    status, output = start(tmp_path, "--ckpt_path", checkpoint, "--data.batch_size", "2").finish()
    assert status == 1
    assert "data.batch_size times devices was 3 and is 2. Use the data settings and the number of devices" in output
    assert "Traceback" not in output


def test_a_run_from_another_model_is_refused(tmp_path, uninterrupted):
    from toy_models import save_toy_model

    other = save_toy_model(tmp_path / "other", num_hidden_layers=1)
    write_config(tmp_path, other)
    process = start(tmp_path, "--ckpt_path", str(uninterrupted / "run/checkpoints/last.ckpt"))
    status, output = process.finish()
    assert status != 0
    assert "The checkpoint holds other weights than this config trains" in output
