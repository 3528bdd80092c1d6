"""Seconds from a command to its first line, to an error about its config and to its help, on an idle machine.

python benchmarks/first_output.py
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

QUICKSTART = "configs/quickstart.yaml"
COMMANDS = {
    "first line of a run": ["fit", "--config", QUICKSTART],
    "error about a key": ["fit", "--config", QUICKSTART, "--model.betaa", "1"],
    "error about a value (full check)": ["fit", "--config", QUICKSTART, "--model.loss_type", "ppo"],
    "fit --help": ["fit", "--help"],
}
REPEATS = 5


def seconds_to_first_output(arguments: list[str]) -> float:
    """Wall time until the first byte of either stream; the process is ended then."""
    with tempfile.TemporaryDirectory() as root:
        own_root = ["--trainer.default_root_dir", root] if "--config" in arguments else []
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "grpo_lightning", *arguments, *own_root],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[1],
        )
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = time.perf_counter() - started
        process.kill()
        process.wait()
        return seconds


def seconds_to_end(arguments: list[str]) -> float:
    """Wall time of a command that ends by itself."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "grpo_lightning", *arguments], capture_output=True, check=False)
    return time.perf_counter() - started


def main() -> None:
    """Prints the median of each, as JSON."""
    result = {}
    for what, arguments in COMMANDS.items():
        measure = seconds_to_first_output if what.startswith("first") else seconds_to_end
        result[what] = round(statistics.median(measure(arguments) for _ in range(REPEATS)), 2)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
