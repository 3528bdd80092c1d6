"""The fault matrix: runs that are killed, signalled, robbed of their disk or given damaged files, and what became of them.

    python tests/fault_matrix.py --kills 40 --signals 30 --disks 12 --files 40

Takes some minutes, so that `make test` runs a sample of it (tests/test_fault_matrix.py). A fault is survived where the run
that goes on from it ends with the weights of an undisturbed one, bit for bit; a damaged file where it is refused in one line,
or the damage touched nothing that is read. Everything else is lost, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import torch  # noqa: E402
from runs import write_prompts  # noqa: E402
from toy_models import save_toy_model  # noqa: E402

from grpo_lightning.commands.cli import main as lightning_cli  # noqa: E402
from grpo_lightning.distributed.checkpoint_check import CheckpointNotReadableError, read_checkpoint  # noqa: E402

STEPS = 6
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


@dataclass
class Tally:
    """Counts of one row of the matrix."""

    injected: int = 0
    survived: int = 0
    lost: list[str] = field(default_factory=list)

    def add(self, survived: bool, what: str) -> None:
        self.injected += 1
        self.survived += survived
        if not survived:
            self.lost.append(what)


def launch(folder: Path, model: Path, scenario: str, *arguments: str) -> int:
    """Forks a run in ``folder`` and returns its pid: a fork needs no imports."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        folder.mkdir(exist_ok=True)
        os.chdir(folder)
        write_prompts(folder / "train.jsonl", 11)
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        options = {
            "trainer.accelerator": "cpu",
            "trainer.max_steps": STEPS,
            "trainer.default_root_dir": "run",
            "trainer.enable_progress_bar": "false",
            "model.model_name_or_path": model,
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
        lightning_cli(["fit", *(f"--{k}={v}" for k, v in options.items()), *SCENARIOS[scenario], *arguments])
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except KeyboardInterrupt:  # while the command line was being read
        status = 128 + signal.SIGINT
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def run(folder: Path, model: Path, scenario: str, *arguments: str) -> int:
    """A run to its end; the exit status."""
    return os.waitstatus_to_exitcode(os.waitpid(launch(folder, model, scenario, *arguments), 0)[1])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = read_checkpoint(folder / "run/checkpoints/last.ckpt", weights_only=True)[
        "state_dict"
    ]
    return found


class Matrix:
    """The undisturbed runs, and what is compared with them."""

    def __init__(self, place: Path, seed: int) -> None:
        self.place, self.random, self.tallies = place, random.Random(seed), dict[str, Tally]()
        self.model = save_toy_model(place / "model")
        self.whole: dict[str, dict[str, torch.Tensor]] = {}
        self.seconds: dict[str, float] = {}

    def undisturbed(self, scenario: str) -> dict[str, torch.Tensor]:
        if scenario not in self.whole:
            begun, folder = time.monotonic(), self.place / f"whole-{scenario}"
            assert run(folder, self.model, scenario) == 0, (folder / "log").read_text()
            self.whole[scenario], self.seconds[scenario] = weights(folder), time.monotonic() - begun
        return self.whole[scenario]

    def note(self, row: str, survived: bool, what: str) -> None:
        self.tallies.setdefault(row, Tally()).add(survived, what)
        print(f"{row}: {what}: {'survived' if survived else 'LOST'}", flush=True)

    def goes_on(self, folder: Path, scenario: str) -> bool:
        """Whether the run, started again, ends with the weights of the undisturbed one."""
        expected = self.undisturbed(scenario)
        if run(folder, self.model, scenario, "--ckpt_path=last") != 0:
            return False
        found = weights(folder)
        return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)

    def interrupted(self, row: str, number: signal.Signals, count: int) -> None:
        """Signals at random instants of the whole run, loading and export included."""
        for index in range(count):
            scenario = list(SCENARIOS)[index % len(SCENARIOS)]
            self.undisturbed(scenario)
            folder, wait = self.place / f"{number.name}-{index}", self.random.uniform(0.05, self.seconds[scenario])
            pid = launch(folder, self.model, scenario)
            time.sleep(wait)
            os.kill(pid, number)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            # 0: it had ended. Before training starts, a signal ends the process as it ends any other.
            is_expected = status in (0, -number, 128 + number)
            good = self.goes_on(folder, scenario)
            self.note(row, good and is_expected, f"{scenario}, after {wait:.2f} s, status {status}")
            if good:
                shutil.rmtree(folder)

    def disks(self, count: int) -> None:
        """A file where a folder has to be: nothing below it can be written."""
        kinds: dict[str, tuple[str, bool]] = {"hf": ("export", False), "completions": ("Parquet", True)}
        for index in range(count):
            name, (what, ends_well) = list(kinds.items())[index % 2]
            scenario, folder = list(SCENARIOS)[index // 2 % len(SCENARIOS)], self.place / f"disk-{index}"
            expected = self.undisturbed(scenario)
            (folder / "run").mkdir(parents=True)
            (folder / "run" / name).touch()
            status = run(folder, self.model, scenario)
            found, log = weights(folder), (folder / "log").read_text()
            good = all(torch.equal(found[key], expected[key]) for key in expected) and "Traceback" not in log
            self.note("disks", good and (status == 0) == ends_well, f"{scenario}, no {what}, status {status}")

    def files(self, count: int) -> None:
        """Bits flipped, ends cut off, bytes overwritten in a checkpoint of a real run."""
        faults: dict[str, Callable[[bytearray, int], Any]] = {
            "bit": lambda data, at: data.__setitem__(at, data[at] ^ 1 << self.random.randrange(8)),
            "cut": lambda data, at: data.__delitem__(slice(at, None)),
            "zeros": lambda data, at: data.__setitem__(slice(at, at + 512), bytes(len(data[at : at + 512]))),
        }
        expected = self.undisturbed("plain")
        whole = (self.place / "whole-plain/run/checkpoints/last.ckpt").read_bytes()
        path = self.place / "damaged.ckpt"
        for index in range(count):
            kind = list(faults)[index % 3]
            data, at = bytearray(whole), self.random.randrange(len(whole))
            faults[kind](data, at)
            path.write_bytes(data)
            try:
                found = read_checkpoint(path, weights_only=True)["state_dict"]
                good, what = all(torch.equal(found[name], expected[name]) for name in expected), "harmless"
            except CheckpointNotReadableError as error:
                good, what = "\n" not in str(error), "refused"
            self.note("files", good, f"{kind} at {at}, {what}")


def main(arguments: list[str]) -> int:
    """Runs the matrix and prints its counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("kills", 40), ("signals", 30), ("disks", 12), ("files", 40), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fault-matrix-", ignore_cleanup_errors=True) as place:
        matrix = Matrix(Path(place), options.seed)
        matrix.files(options.files)
        matrix.interrupted("SIGKILL", signal.SIGKILL, options.kills)
        matrix.interrupted("SIGTERM", signal.SIGTERM, -(-options.signals // 2))
        matrix.interrupted("SIGINT", signal.SIGINT, options.signals // 2)
        matrix.disks(options.disks)
    print(f"\n{'fault':<10}{'injected':>10}{'survived':>10}{'lost':>10}")
    for row, tally in matrix.tallies.items():
        print(f"{row:<10}{tally.injected:>10}{tally.survived:>10}{len(tally.lost):>10}")
    totals = [sum(getattr(tally, name) for tally in matrix.tallies.values()) for name in ("injected", "survived")]
    print(f"{'all':<10}{totals[0]:>10}{totals[1]:>10}{totals[0] - totals[1]:>10}")
    return int(totals[0] != totals[1])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
