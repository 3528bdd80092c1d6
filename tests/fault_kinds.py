"""The faults of the matrix, each a function of the runs, its row and its number: whether it was survived, and what it was."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from command_runs import CommandRun
from fault_rewards import FAULTS, IN_A_PROCESS, STOPPED
from runs import write_prompts
from toy_models import save_toy_model

from grpo_lightning.distributed.checkpoint_check import CheckpointNotReadableError, read_checkpoint

STEPS = 5
SCENARIOS = {
    "plain": [],
    "validation": [
        "--data.eval_dataset=train.jsonl",
        "--trainer.val_check_interval=3",
        "--trainer.limit_val_batches=1",
    ],
    "stream": ["--data.streaming=true", "--data.shuffle_block=5"],
    "lora": ["--model.finetuning_type=lora", "--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=0.01"],
    "dynamic": ["--model.dynamic_sampling.mode=drop"],
    "link": ["--checkpoint.save_last=link", "--checkpoint.every_n_train_steps=2"],
}
Found = tuple[bool, str]
Weights = dict[str, torch.Tensor]


class Runs:
    """Undisturbed runs of every scenario, and disturbed ones that are compared with them."""

    def __init__(self, place: Path, seed: int) -> None:
        self.place, self.seed = place, seed
        self.model = save_toy_model(place / "model")
        self._whole: dict[str, Weights] = {}
        self._locks = {scenario: threading.Lock() for scenario in SCENARIOS}
        self.seconds: dict[str, float] = {}

    def chance(self, row: str, index: int) -> random.Random:
        """What a fault draws from: the same in every run of the matrix, whatever else is injected."""
        return random.Random(f"{self.seed} {row} {index}")

    def scenario_of(self, row: str, index: int) -> str:
        """Scenarios take turns; a second round of rewards meets others than the first."""
        if row == "checkpoint":
            return "plain"
        return list(SCENARIOS)[(index + index // len(FAULTS)) % len(SCENARIOS)]

    def folder(self, row: str, index: int) -> Path:
        """Of a disturbed run."""
        folder = self.place / f"{row}-{index}".replace(" ", "-")
        folder.mkdir()
        return folder

    def start(self, folder: Path, scenario: str, *arguments: str, **environment: str) -> CommandRun:
        """A run in ``folder``/run, with a checkpoint after every step or two."""
        write_prompts(folder / "train.jsonl", 11)
        options = {
            "trainer.accelerator": "cpu",
            "trainer.max_steps": STEPS,
            "trainer.default_root_dir": "run",
            "trainer.enable_progress_bar": "false",
            "model.model_name_or_path": self.model,
            "model.generator": "TransformersGenerator",
            "model.rewards": "runs.share_of_digits",
            "model.num_generations": 4,
            "model.max_completion_length": 8,
            "model.optimizer": "torch.optim.AdamW",
            "model.optimizer.lr": 0.001,
            "data.dataset": "train.jsonl",
            "data.batch_size": 3,
            "checkpoint.every_n_train_steps": 1,
        }
        given = [f"--{name}={value}" for name, value in options.items()]
        return CommandRun(folder, "fit", *given, *SCENARIOS[scenario], *arguments, **environment)

    def undisturbed(self, scenario: str) -> Weights:
        """Weights of a whole run, trained once."""
        with self._locks[scenario]:
            if scenario not in self._whole:
                begun, folder = time.monotonic(), self.folder("whole", list(SCENARIOS).index(scenario))
                status, output = self.start(folder, scenario).finish()
                assert status == 0, output
                self._whole[scenario], self.seconds[scenario] = weights(folder), time.monotonic() - begun
            return self._whole[scenario]

    def is_whole(self, folder: Path, scenario: str) -> bool:
        """Whether a folder's last checkpoint has the weights of the undisturbed run."""
        expected, found = self.undisturbed(scenario), weights(folder)
        return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)

    def goes_on(self, folder: Path, scenario: str) -> bool:
        """Whether the run, started again, ends with the weights of the undisturbed one."""
        return self.start(folder, scenario, "--ckpt_path=last").finish()[0] == 0 and self.is_whole(folder, scenario)


def weights(folder: Path) -> Weights:
    """Of a run's last checkpoint; nothing where there is none."""
    path = folder / "run/checkpoints/last.ckpt"
    return read_checkpoint(path, weights_only=True)["state_dict"] if path.exists() else {}


def interrupted(runs: Runs, row: str, index: int) -> Found:
    """A signal at a random instant of the whole run, loading and export included."""
    number, scenario, folder = signal.Signals[row], runs.scenario_of(row, index), runs.folder(row, index)
    wait = runs.chance(row, index).uniform(0.05, runs.seconds[scenario])
    run = runs.start(folder, scenario)
    time.sleep(wait)
    run.send_signal(number)
    status, _ = run.finish()
    # 0: it had ended. Before training starts, a signal ends the process as it ends any other.
    is_expected = status in (0, -number, 128 + number)
    good = runs.goes_on(folder, scenario)
    shutil.rmtree(folder)
    return good and is_expected, f"{scenario}, after {wait:.2f} s, status {status}"


def file_in_the_way(runs: Runs, row: str, index: int) -> Found:
    """A file where a folder has to be: nothing below it can be written."""
    name, what, expected = [("hf", "export", 1), ("completions", "Parquet", 0), ("logs", "config", 2)][index % 3]
    scenario, folder = list(SCENARIOS)[index // 3 % len(SCENARIOS)], runs.folder(row, index)
    (folder / "run").mkdir()
    (folder / "run" / name).touch()
    status, output = runs.start(folder, scenario).finish()
    good = status == expected and "Traceback" not in output
    if expected == 2:  # refused before anything was trained
        (folder / "run" / name).unlink()
        return good and runs.goes_on(folder, scenario), f"{scenario}, no {what}, status {status}"
    return good and runs.is_whole(folder, scenario), f"{scenario}, no {what}, status {status}"


def disk(runs: Runs, row: str, index: int) -> Found:
    """A disk that fills up, or checkpoints that can only be read; afterwards there is room, and the run goes on.

    Where this machine lets nobody mount, a limit on the size of files takes the place of the full disk.
    """
    scenario, folder = runs.scenario_of(row, index), runs.folder(row, index)
    megabytes = runs.chance(row, index).uniform(0.2, 8.0)
    run_folder = folder / "run"
    run_folder.mkdir()
    limits: dict[str, str] = {}
    kind = f"{megabytes:.1f} MB are free"
    if index % 4 == 3:
        (run_folder / "checkpoints").mkdir()
        kind = "checkpoints cannot be written"
    if not mount("-t", "tmpfs", "-o", f"size={int(megabytes * 1000)}k", "tmpfs", str(run_folder)):
        limits["MAX_FILE_BYTES"] = str(int(megabytes * 200_000))
        kind = f"files of more than {limits['MAX_FILE_BYTES']} bytes fail"
    elif index % 4 == 3:
        mount("-o", "remount,size=64m", str(run_folder))
        (run_folder / "checkpoints").mkdir()
        mount("--bind", str(run_folder / "checkpoints"), str(run_folder / "checkpoints"))
        mount("-o", "remount,bind,ro", str(run_folder / "checkpoints"))
    try:
        status, output = runs.start(folder, scenario, **limits).finish()
        tidy = "Traceback" not in output and not list(run_folder.rglob("*.part"))
        good = tidy and (status == 0 or "error:" in output)
        unmount(run_folder / "checkpoints")
        mount("-o", "remount,size=64m", str(run_folder))
        good = good and runs.goes_on(folder, scenario)
    finally:
        unmount(run_folder / "checkpoints")
        unmount(run_folder)
    return good, f"{scenario}, {kind}, status {status}"


def mount(*arguments: str) -> bool:
    """Whether it was allowed."""
    return (
        shutil.which("mount") is not None and subprocess.run(["mount", *arguments], capture_output=True).returncode == 0
    )


def unmount(place: Path) -> None:
    """Nothing where nothing is mounted."""
    subprocess.run(["umount", "--lazy", str(place)], capture_output=True)


def reward(runs: Runs, row: str, index: int) -> Found:
    """A second reward that misbehaves; see ``fault_rewards``."""
    fault, scenario, folder = list(FAULTS)[index % len(FAULTS)], runs.scenario_of(row, index), runs.folder(row, index)
    settings: dict[str, Any] = {"weight": 0.0, "call_time_limit": 1.5}
    if fault in IN_A_PROCESS:
        settings |= {"isolation": "process", "concurrency": 1}
    rewards = json.dumps(["runs.share_of_digits", {"class_path": "fault_rewards.misbehaves", "init_args": settings}])
    places = {"FAULT": fault, "RUN_FOLDER": str(folder / "run")}
    status, output = runs.start(folder, scenario, f"--model.rewards={rewards}", **places).finish()
    if fault not in STOPPED:
        return status == 0 and runs.is_whole(folder, scenario), f"{scenario}, {fault}, status {status}"
    named = status != 0 and "misbehaves" in output and "Traceback" not in output
    return named and runs.goes_on(folder, scenario), f"{scenario}, {fault}, status {status}"


def checkpoint(runs: Runs, row: str, index: int) -> Found:
    """Bits flipped, ends cut off, bytes overwritten in a checkpoint of a real run."""
    expected, chance = runs.undisturbed("plain"), runs.chance(row, index)
    whole = (runs.place / "whole-0/run/checkpoints/last.ckpt").read_bytes()
    data, at = bytearray(whole), chance.randrange(len(whole))
    faults: dict[str, Callable[[], Any]] = {
        "bit": lambda: data.__setitem__(at, data[at] ^ 1 << chance.randrange(8)),
        "cut": lambda: data.__delitem__(slice(at, None)),
        "zeros": lambda: data.__setitem__(slice(at, at + 512), bytes(len(data[at : at + 512]))),
    }
    kind = list(faults)[index % 3]
    faults[kind]()
    path = runs.place / f"damaged-{index}.ckpt"
    path.write_bytes(data)
    try:
        found = read_checkpoint(path, weights_only=True)["state_dict"]
        good, what = all(torch.equal(found[name], expected[name]) for name in expected), "harmless"
    except CheckpointNotReadableError as error:
        good, what = "\n" not in str(error), "refused"
    path.unlink()
    return good, f"{kind} at {at}, {what}"


ROWS: dict[str, Callable[[Runs, str, int], Found]] = {
    "SIGKILL": interrupted,
    "SIGTERM": interrupted,
    "SIGINT": interrupted,
    "file in the way": file_in_the_way,
    "disk": disk,
    "reward": reward,
    "checkpoint": checkpoint,
}
