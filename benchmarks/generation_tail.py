"""What bounds generation: the time of each engine step by the number of completions that still run, and sleep levels.

python benchmarks/generation_tail.py --device cpu --shape tiny     # writes benchmarks/results/generation_tail_tiny_cpu.json
python benchmarks/generation_tail.py --device cuda --shape 0.5b    # one GPU

A step of the engine gives each running completion one token, so the longest completion decides how many steps there are,
and most of them run with few completions: the tail. Engines differ in one setting each:

- default: VLLMColocate as it is
- not_ahead: async_scheduling=false, the next step is prepared only when the last one has ended
- eager: enforce_eager=true, no CUDA graphs
- sleep_1, sleep_2: the engine gives its memory back after every call

On a GPU, ``tail`` divides steps with at most 32 completions by torch.profiler: how long kernels ran in a step, of its time.
``host`` has the functions that the thread of the engine was in, in percent of its looks at the stack, for all steps.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from generation import ENGINE_ON_CPU, ROOT, Variants, prepare, timed
from sides.command import this_command
from sides.host_stacks import HostStacks
from sides.record import versions
from sides.workload import WORKLOADS
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from grpo_lightning.generation import SamplingSettings, VLLMColocate
from grpo_lightning.policy.end_of_sequence import end_of_sequence_ids

ENGINES: dict[str, dict[str, Any]] = {
    "default": {},
    "not_ahead": {"engine_kwargs": {"async_scheduling": False}},
    "eager": {"enforce_eager": True},
    "sleep_1": {"enable_sleep_mode": True, "sleep_level": 1},
    "sleep_2": {"enable_sleep_mode": True, "sleep_level": 2},
}
FEW = 32
PROFILED_STEPS = 60


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=WORKLOADS, default="tiny")
    parser.add_argument("--prompts", type=int, help="prompts a step; by default the shape's")
    parser.add_argument("--max-completion-length", type=int)
    parser.add_argument("--mean-length", type=int, help="of completions, before the limit cuts them")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "generation", help="model and prompts")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/generation_tail_<shape>_<device>.json")
    return parser.parse_args()


class Timeline:
    """Wraps the engine's ``step``: what each took, and how many completions ran.

    Args:
        engine: vLLM's.
        profiled: Profile the first steps with few completions, which makes them slower.
    """

    def __init__(self, engine: Any, profiled: bool) -> None:
        self.engine, self.profiled = engine, profiled
        self.steps: list[tuple[int, float]] = []
        """(completions running before the step, seconds)."""
        self.profiler = profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU], acc_events=True)
        self._step = engine.step
        self._profiled_from: int | None = None

    def __enter__(self) -> Timeline:
        self.engine.step = self.step
        return self

    def __exit__(self, *error: object) -> None:
        del self.engine.step

    def step(self) -> Any:
        """The engine's step, timed."""
        running = self.engine.get_num_unfinished_requests()
        if self.profiled and running <= FEW and self._profiled_from is None:
            self.profiler.start()
            self._profiled_from = len(self.steps)
        started = time.perf_counter()
        outputs = self._step()
        self.steps.append((running, time.perf_counter() - started))
        if self._profiled_from is not None and len(self.steps) == self._profiled_from + PROFILED_STEPS:
            self.profiler.stop()
        return outputs

    def by_running(self) -> dict[str, dict[str, float]]:
        """Steps, seconds and milliseconds a step, by the number of completions that ran."""
        found: dict[int, list[float]] = defaultdict(list)
        for running, seconds in self.steps:
            found[1 << max(0, running.bit_length() - 1)].append(seconds)
        return {
            f"{low} to {2 * low - 1}": {
                "steps": len(times),
                "seconds": round(sum(times), 4),
                "ms_per_step": round(1000 * sum(times) / len(times), 3),
            }
            for low, times in sorted(found.items(), reverse=True)
        }

    def tail(self) -> dict[str, float]:
        """Milliseconds of a profiled step, and those in which a kernel ran."""
        assert self._profiled_from is not None
        steps = self.steps[self._profiled_from : self._profiled_from + PROFILED_STEPS]
        events = [e for e in self.profiler.events() or [] if e.device_type == DeviceType.CUDA]
        kernels = sum(e.time_range.elapsed_us() for e in events)
        wall = sum(seconds for _, seconds in steps)
        return {
            "steps": len(steps),
            "ms_per_step": round(1000 * wall / len(steps), 3),
            "kernel_ms_per_step": round(kernels / 1000 / len(steps), 3),
        }


def sleeping(generator: VLLMColocate) -> dict[str, float]:
    """Seconds of going to sleep and of waking up with all weights, and the memory that comes free."""
    generator._ready_engine()
    free = torch.cuda.mem_get_info()[0]
    torch.cuda.synchronize()
    started = time.perf_counter()
    generator.rest()
    torch.cuda.synchronize()
    slept = time.perf_counter()
    freed = torch.cuda.mem_get_info()[0] - free
    again = time.perf_counter()
    generator._ready_engine()
    torch.cuda.synchronize()
    return {"sleep_s": slept - started, "wake_s": time.perf_counter() - again, "freed_gib": freed / 2**30}


def measure(name: str, options: argparse.Namespace, workload: Any, policy: Any, tokenizer: Any, prompts: Any) -> Any:
    """One engine: a run for warming up, a timed one, one with the timeline, one that looks at stacks, one with the profiler."""
    is_cuda = options.device == "cuda"
    sampling = SamplingSettings(workload.num_generations, workload.max_completion_length, workload.temperature)
    longest = max(map(len, prompts)) + workload.max_completion_length
    settings = ({} if is_cuda else ENGINE_ON_CPU) | {"max_model_length": longest} | ENGINES[name]
    generator = VLLMColocate(**settings)
    started = time.perf_counter()
    generator.start(policy, tokenizer, workload.model)
    result: dict[str, Any] = {"settings": ENGINES[name], "start_s": time.perf_counter() - started}
    try:
        generator.update_weights(policy)
        variants = Variants(generator, prompts, sampling, sorted(end_of_sequence_ids(policy, tokenizer)))
        run = partial(variants.run, "colocate")
        run()
        result["colocate"] = timed(options.device, run)
        assert generator._engine is not None
        if name.startswith("sleep"):
            result["sleep"] = sleeping(generator)
            return result
        engine = generator._engine.llm.llm_engine
        with Timeline(engine, profiled=False) as timeline:
            run()
        result["steps_by_running_completions"] = timeline.by_running()
        with HostStacks("engine/engine.py:step") as stacks:
            run()
        result["host"] = stacks.shares()
        if is_cuda and name != "eager":
            with Timeline(engine, profiled=True) as timeline:
                run()
            result["tail"] = timeline.tail()
    finally:
        generator.stop()
    return result


def main() -> None:
    options = parse()
    if options.device == "cpu":
        torch.set_num_threads(1)
    workload, policy, tokenizer, prompts = prepare(options)
    chosen = [name for name in options.engines if options.device == "cuda" or not name.startswith("sleep")]
    results = {name: measure(name, options, workload, policy, tokenizer, prompts) for name in chosen}
    record = {
        "command": this_command("benchmarks/generation_tail.py"),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "workload": workload.options(),
        "versions": versions(),
        "engines": results,
    }
    out = options.out or ROOT / "benchmarks" / "results" / f"generation_tail_{options.shape}_{options.device}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
