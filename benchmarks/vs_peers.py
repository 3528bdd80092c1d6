"""Other trainers on the workload of vs_trl.py: the same model directory, prompts, lengths and sampling settings.

python benchmarks/vs_peers.py --device cuda --shape 0.5b --dtype mixed --only verl      # in verl's environment
python benchmarks/vs_peers.py --device cuda --shape 0.5b --dtype mixed --only unsloth   # in Unsloth's
python benchmarks/vs_peers.py --device cuda --shape 0.5b --dtype mixed --gather         # benchmarks/results/peers_0.5b_cuda.json

Each peer needs packages of its own: ``peers/README.md`` says which. A run that --seconds-per-side ends leaves the steps that it
came to. --gather puts the records that lie in --folder beside each other, and beside the sides of --beside FILE, a result of
vs_trl.py with the same options.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from sides.command import this_command
from sides.compare import summarize
from sides.workload import WORKLOADS, Workload
from vs_trl import ROOT, folder_of, parse, prepare, start_side

BENCHMARK = "vs_peers"
SIDES = {"verl": "peers.verl_run", "unsloth": "peers.unsloth_run"}
ORDER = ("grpo_lightning", "trl", *SIDES)
OWN = ("engine_options", "per_device_batch", "steps", "warmup_steps")
"""Options that sides may differ in."""


def summaries_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Of every side whose record in the folder has a step that counts."""
    found = {}
    for side in ORDER:
        record, settings = folder / f"{side}.json", folder / f"{side}.workload.json"
        if record.exists() and settings.exists():
            workload, content = Workload.load(settings), json.loads(record.read_text(encoding="utf-8"))
            steps = content["steps"][workload.warmup_steps :]
            if steps:
                kept = {name: content[name] for name in ("precision",) if name in content}
                found[side] = summarize(content, steps) | kept | {"options": workload.options()}
    return found


def beside(result: dict[str, Any], workload: Workload) -> dict[str, dict[str, Any]]:
    """Sides of a result of vs_trl.py, which must have had the same workload."""
    ours, theirs = workload.options(), result["options"]
    different = [name for name in ours if name not in OWN and ours[name] != theirs.get(name)]
    if different:
        raise SystemExit(f"--beside: that result has another {', '.join(different)}.")
    return {side: result[side] | {"options": theirs} for side in ORDER if side in result}


def gather(arguments: argparse.Namespace, workload: Workload) -> dict[str, Any]:
    """All sides that there are, in the form of a result."""
    known = beside(json.loads(arguments.beside.read_text(encoding="utf-8")), workload) if arguments.beside else {}
    known |= summaries_of(folder_of(arguments, BENCHMARK))
    if not known:
        raise SystemExit("There is no record with a step that counts.")
    return {
        "command": this_command(f"benchmarks/{BENCHMARK}.py"),
        "shape": workload.shape,
        "device": next(iter(known.values()))["device"],
        "cores": os.cpu_count(),
        "options": workload.options(),
        "sides": {side: known[side] for side in ORDER if side in known},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", action="store_true", help="write prompts and model, and run nothing")
    parser.add_argument("--gather", action="store_true", help="write the result of the records that there are")
    parser.add_argument("--beside", type=Path, help="with --gather: a result of vs_trl.py")
    arguments, workload = parse(parser, WORKLOADS, "0.5b", tuple(SIDES))
    if arguments.rounds != 1 or not (arguments.only or arguments.prepare or arguments.gather):
        parser.error("give --only, --prepare or --gather, and no --rounds: peers have an environment each.")
    folder = folder_of(arguments, BENCHMARK)
    if arguments.gather:
        results = gather(arguments, workload)
        out = arguments.out or ROOT / "benchmarks" / "results" / f"peers_{arguments.shape}_{arguments.device}.json"
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print({side: found["step_s"] for side, found in results["sides"].items()})
        return
    workload = prepare(workload, None, folder)
    for side in () if arguments.prepare else (arguments.only,):
        record = start_side(side, workload, folder, arguments.seconds_per_side, (SIDES[side],), arguments.reuse)
        print(f"{side}: {len(record['steps'])} steps: {[round(sum(s['wall_s'].values()), 2) for s in record['steps']]}")


if __name__ == "__main__":
    main()
