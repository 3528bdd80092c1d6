"""Rebuild the model and the rows of the quickstart with tools, as ``scripts/quickstart/make_model.py`` does for the other one.

python scripts/quickstart_tools/make_model.py       # writes assets/quickstart_tools/, about 8 minutes on one core
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from task import Problem, distinct_problems, sample_problem, turns
from tokenizer import build_tokenizer

sys.path.append(str(Path(__file__).resolve().parents[1] / "quickstart"))
from random_model import build_model

from assets import ROOT, grpo_lightning, keep_export, write_rows

CONFIG = Path(__file__).with_name("sft.yaml")
TRAIN_ROWS, HELD_OUT_ROWS = 4096, 400


def main() -> None:
    """Write the start and the demonstrations, imitate, keep the export, and print what it can do before any reward."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "quickstart_tools", help="directory to write to")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs" / "quickstart-tools-sft", help="directory to work in"
    )
    parser.add_argument("--steps", type=int, help="optimizer steps of imitation, in place of those in sft.yaml")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights and the demonstrations")
    options = parser.parse_args()

    work, settings = options.work.resolve(), yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    steps = options.steps or settings["trainer"]["max_steps"]
    shutil.rmtree(work, ignore_errors=True)
    tokenizer = build_tokenizer()
    build_model(tokenizer, options.seed).save_pretrained(work / "start")
    tokenizer.save_pretrained(work / "start")
    write_rows(
        class_demonstrations(steps * settings["data"]["batch_size"], options.seed), work / "demonstrations.jsonl"
    )
    places = {
        "trainer.default_root_dir": work,
        "model.model_name_or_path": work / "start",
        "data.dataset": work / "demonstrations.jsonl",
    }
    grpo_lightning("sft", CONFIG, places | {"trainer.max_steps": steps, "seed_everything": options.seed})

    out = options.out.resolve()
    keep_export(work / "start", work / "hf" / "last", out / "model")
    problems = distinct_problems(random.Random("train"), TRAIN_ROWS, held_out=False)
    held_out = distinct_problems(random.Random("heldout"), HELD_OUT_ROWS, held_out=True)
    write_rows(map(graded, problems), out / "train.jsonl")
    write_rows(map(graded, held_out), out / "heldout.jsonl")
    made = {"model.model_name_or_path": out / "model", "data.eval_dataset": out / "heldout.jsonl"}
    log = {"model.num_generations_eval": 8, "trainer.default_root_dir": work}
    grpo_lightning("validate", ROOT / "configs" / "quickstart_tools.yaml", made | log)


def class_demonstrations(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Turns of pupils who call both tools in the first half, of the class in the second."""
    rng, halves = random.Random(seed), count // 2

    def endless(is_class: bool) -> Iterator[dict[str, Any]]:
        while True:
            yield from turns(sample_problem(rng, held_out=False), rng, is_class)

    yield from islice(endless(False), halves)
    yield from islice(endless(True), count - halves)


def graded(problem: Problem) -> dict[str, Any]:
    """The problem with what rewards compare answers with."""
    return {"prompt": [{"role": "user", "content": problem.prompt}], "ground_truth": str(problem.result)}


if __name__ == "__main__":
    main()
