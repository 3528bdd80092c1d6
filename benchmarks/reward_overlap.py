"""What a slow reward adds to a step: a toy policy on the CPU, with a reward that sleeps in every second step.

python benchmarks/reward_overlap.py                       # about ten minutes on two cores

Slow and quick steps take turns in one process, on the same prompts and (with a learning rate of 0) the same policy, so that a
busy machine slows both. ``wait_s`` is ``time/rewards/wait``: how long the step stood still for its rewards. Medians over the
slow steps; ``added_s`` is the difference of the median ``step_time`` of slow and quick steps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from sides.command import this_command
from sides.record import versions

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 1.0
PROMPTS, COMPLETIONS = 12, 96


def share(completions: list[str]) -> list[float]:
    return [sum(map(str.isdigit, text)) / max(1, len(text)) for text in completions]


def seconds(trainer_state: Any, when_slow: float = SECONDS) -> float:
    return when_slow if trainer_state.global_step % 2 else 0.0


def sleeps_a_call(completions: list[str], trainer_state: Any, **columns: Any) -> list[float]:
    time.sleep(seconds(trainer_state))
    return share(completions)


def sleeps_for_each(completions: list[str], trainer_state: Any, **columns: Any) -> list[float]:
    for _ in completions:
        time.sleep(seconds(trainer_state, SECONDS / COMPLETIONS))
    return share(completions)


async def sleeps_async(completions: list[str], trainer_state: Any, **columns: Any) -> list[float]:
    await asyncio.sleep(seconds(trainer_state))
    return share(completions)


VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "1 s in one call, as TRL calls it (scope batch)": (sleeps_a_call, {}),
    "1 s a call, one call a group (scope group)": (sleeps_a_call, {"scope": "group"}),
    "1 s a completion, async (scope completion)": (sleeps_async, {"scope": "completion"}),
    "1 s spread over all completions (scope completion)": (sleeps_for_each, {"scope": "completion"}),
}


def run_variant(name: str, setting: str, steps: int) -> dict[str, float]:
    """Slow and quick steps of one variant in this process."""
    sys.path.insert(0, str(ROOT / "tests"))
    import torch
    from runs import make_data, make_module, make_trainer
    from toy_models import save_toy_model

    from grpo_lightning.rewards import FunctionReward

    function, calling = VARIANTS[name]
    beta, stop = SETTINGS[setting]
    folder = Path(tempfile.mkdtemp())
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
    module = make_module(
        save_toy_model(folder / "model", num_key_value_heads=2, **sizes),
        rewards=[FunctionReward(name="reward", function=function, **calling)],
        num_generations=COMPLETIONS // PROMPTS,
        max_completion_length=128,
        stop=stop,
        beta=beta,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
    )
    seen: list[dict[str, float]] = []
    end_step = module.end_step

    def record(*arguments: Any) -> None:
        end_step(*arguments)
        seen.append(dict(module.step_metrics))

    module.end_step = record  # type: ignore[method-assign]
    make_trainer(folder, steps).fit(module, datamodule=make_data(folder, batch_size=PROMPTS))
    quick, slow = seen[2::2], seen[1::2]  # the first of all warms up
    found = {key: median(step[metric] for step in slow) for key, metric in KEYS.items()}
    return found | {"added_s": found["step_s"] - median(step["step_time"] for step in quick)}


SETTINGS: dict[str, tuple[float, list[str]]] = {
    "no reference, lengths of all kinds": (0.0, ["e", "7"]),
    "reference, lengths of all kinds": (0.04, ["e", "7"]),
    "reference, all of full length": (0.04, []),
}
KEYS = {
    "step_s": "step_time",
    "generate_s": "time/generate",
    "old_and_reference_s": "time/old_and_reference",
    "train_s": "time/train",
    "wait_s": "time/rewards/wait",
}


def main() -> None:
    """Runs every variant with and without a reference, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "reward_overlap_cpu.json")
    parser.add_argument("--one", nargs=2, metavar=("VARIANT", "SETTING"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print("RESULT " + json.dumps(run_variant(*options.one, options.steps)))
        return
    results = []
    for setting in SETTINGS:
        for name in VARIANTS:
            command = [sys.executable, __file__, "--one", name, setting, "--steps", str(options.steps)]
            environment = os.environ | {
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
            }
            output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            line = next(line for line in output.splitlines() if line.startswith("RESULT "))
            results.append({"reward": name, "step": setting} | json.loads(line.removeprefix("RESULT ")))
            print(json.dumps(results[-1]), flush=True)
    about = {"command": this_command("benchmarks/reward_overlap.py"), "threads": 1, "steps": options.steps}
    record = about | {"versions": versions(), "results": results}
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
