"""Making the assets of a quickstart: a start, imitation by the project's own command line, rows, and the export that is kept."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from random_model import build_model
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
TRAIN_ROWS, HELD_OUT_ROWS = 4096, 400


@dataclass(frozen=True)
class Quickstart:
    """What one quickstart has of its own."""

    name: str
    """Of its folder in assets/, and of its config."""
    sft: Path
    """The config of the imitation."""
    tokenizer: PreTrainedTokenizerFast
    demonstrations: Callable[[int, int], Iterable[dict[str, Any]]]
    """So many rows to imitate, from a seed."""
    sample_problem: Callable[[random.Random, bool], Any]
    """One from either side of the split."""
    graded: Callable[[Any], dict[str, Any]]
    """The row of a problem, with what rewards compare answers with."""


def make_assets(quickstart: Quickstart, description: str | None) -> None:
    """Write the start and the demonstrations, imitate, keep the export, and print what it can do before any reward.

    Args:
        quickstart: Which one.
        description: For ``--help``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    out, work = ROOT / "assets" / quickstart.name, ROOT / "runs" / f"{quickstart.name.replace('_', '-')}-sft"
    parser.add_argument("--out", type=Path, default=out, help="directory to write to")
    parser.add_argument("--work", type=Path, default=work, help="directory to work in")
    parser.add_argument("--steps", type=int, help="optimizer steps of imitation, in place of those in sft.yaml")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights and the demonstrations")
    options = parser.parse_args()
    out, work = options.out.resolve(), options.work.resolve()
    imitate(quickstart, work, options.steps, options.seed)
    keep_export(work / "start", work / "hf" / "last", out / "model")
    for name, count in (("train", TRAIN_ROWS), ("heldout", HELD_OUT_ROWS)):
        problems = distinct(quickstart.sample_problem, random.Random(name), count, held_out=name == "heldout")
        write_rows(map(quickstart.graded, problems), out / f"{name}.jsonl")
    made = {"model.model_name_or_path": out / "model", "data.eval_dataset": out / "heldout.jsonl"}
    log = {"model.num_generations_eval": 8, "trainer.default_root_dir": work}
    grpo_lightning("validate", ROOT / "configs" / f"{quickstart.name}.yaml", made | log)


def imitate(quickstart: Quickstart, work: Path, steps: int | None, seed: int) -> None:
    """Train a random model on demonstrations, in ``work``."""
    settings = yaml.safe_load(quickstart.sft.read_text(encoding="utf-8"))
    steps = steps or settings["trainer"]["max_steps"]
    shutil.rmtree(work, ignore_errors=True)
    build_model(quickstart.tokenizer, seed).save_pretrained(work / "start")
    quickstart.tokenizer.save_pretrained(work / "start")
    rows = quickstart.demonstrations(steps * settings["data"]["batch_size"], seed)
    write_rows(rows, work / "demonstrations.jsonl")
    places = {
        "trainer.default_root_dir": work,
        "model.model_name_or_path": work / "start",
        "data.dataset": work / "demonstrations.jsonl",
    }
    grpo_lightning("sft", quickstart.sft, places | {"trainer.max_steps": steps, "seed_everything": seed})


def distinct(
    sample_problem: Callable[[random.Random, bool], Any], rng: random.Random, count: int, held_out: bool
) -> list[Any]:
    """Draw from one side of the split until there are ``count`` different problems."""
    problems: dict[Any, None] = {}
    while len(problems) < count:
        problems[sample_problem(rng, held_out)] = None
    return list(problems)


def write_rows(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """Write one JSON line a row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def grpo_lightning(command: str, config: Path, settings: Mapping[str, Any]) -> None:
    """Run a command of the project on one thread: sums in another order on more threads would give other weights."""
    options = [f"--{name}={value}" for name, value in settings.items()]
    line = [sys.executable, "-m", "grpo_lightning", command, f"--config={config}", *options]
    subprocess.run(line, check=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})


def keep_export(start: Path, export: Path, target: Path) -> None:
    """Copy the start with the exported weights in it: its tokenizer files are shorter than what loading made of them.

    Files are readable by all; safetensors are written 0600, which a package would carry on.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in start.iterdir():
        source = export / path.name if path.suffix == ".safetensors" else path
        shutil.copyfile(source, target / path.name)
