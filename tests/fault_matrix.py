"""The fault matrix: what becomes of runs that are killed, signalled, robbed of their disk, or given bad rewards and files.

    python tests/fault_matrix.py

takes a few minutes on two cores; `make test` runs a sample of it (tests/test_fault_matrix.py). A fault is survived where the
run, or the one that goes on from it, ends with the weights of an undisturbed run, bit for bit; a damaged file where it is
refused in one line, or the damage touched nothing that is read. Everything else is lost, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path[:0] = [str(Path(__file__).parents[1])]

from fault_kinds import ROWS, SCENARIOS, Runs

COUNTS = {"SIGKILL": 30, "SIGTERM": 8, "SIGINT": 8, "file in the way": 9, "disk": 8, "reward": 25, "checkpoint": 18}
"""How many faults of each row are injected."""


@dataclass
class Tally:
    """Counts of one row of the matrix."""

    injected: int = 0
    lost: list[str] = field(default_factory=list)


def matrix(counts: dict[str, int], seed: int, at_once: int) -> dict[str, Tally]:
    """Injects all faults, several at the same time, and counts what became of them."""
    tallies = {row: Tally() for row in counts}
    jobs = [(row, index) for row, count in counts.items() for index in range(count)]
    with (
        tempfile.TemporaryDirectory(prefix="fault-matrix-", ignore_cleanup_errors=True) as place,
        ThreadPoolExecutor(at_once) as threads,
    ):
        runs = Runs(Path(place), seed)
        needed = {scenario for row, index in jobs for scenario in [runs.scenario_of(row, index)]}
        list(threads.map(runs.undisturbed, [name for name in SCENARIOS if name in needed]))
        found: Iterable[tuple[bool, str]] = threads.map(lambda job: ROWS[job[0]](runs, *job), jobs)
        for (row, _), (survived, what) in zip(jobs, found, strict=True):
            tallies[row].injected += 1
            tallies[row].lost += [] if survived else [what]
            print(f"{row}: {what}: {'survived' if survived else 'LOST'}", flush=True)
    return tallies


def main(arguments: list[str]) -> int:
    """Runs the matrix and prints its counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="ROW=COUNT,... in place of all of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at_once", type=int, default=2, help="Runs at the same time.")
    options = parser.parse_args(arguments)
    chosen = dict(entry.split("=") for entry in options.only.split(",")) if options.only else COUNTS
    tallies = matrix({row: int(count) for row, count in chosen.items()}, options.seed, options.at_once)
    print(f"\n{'fault':<18}{'injected':>10}{'survived':>10}{'lost':>6}")
    injected, lost = 0, 0
    for row, tally in tallies.items():
        print(f"{row:<18}{tally.injected:>10}{tally.injected - len(tally.lost):>10}{len(tally.lost):>6}")
        injected, lost = injected + tally.injected, lost + len(tally.lost)
    print(f"{'all':<18}{injected:>10}{injected - lost:>10}{lost:>6}")
    return int(lost > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
