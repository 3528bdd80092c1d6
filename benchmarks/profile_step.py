"""Where each millisecond of a GRPO step goes: by phase, and inside a phase by kind of work.

python benchmarks/profile_step.py --device cpu --shape tiny     # writes benchmarks/results/profile_tiny_cpu.json
python benchmarks/profile_step.py --device cuda --shape 1.5b    # one GPU, vLLM colocated

Seconds of phases come from steps without a profiler; how they divide over kinds of work comes from one more step under
torch.profiler, which makes the step itself slower. On a GPU the kinds divide the time that kernels run; ``idle`` is the
rest of the phase. On the CPU they divide the time inside operators; ``outside operators`` is Python and the profiler.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import warnings
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

import torch  # noqa: E402 - reads the environment
from sides.clock import OTHER, PhaseClock  # noqa: E402
from sides.command import this_command  # noqa: E402
from sides.compare import summarize  # noqa: E402
from sides.make_model import make_model  # noqa: E402
from sides.our_side import train  # noqa: E402
from sides.record import versions  # noqa: E402
from sides.workload import WORKLOADS, Workload, word_problems  # noqa: E402
from torch.autograd import DeviceType  # noqa: E402
from torch.profiler import ProfilerActivity, profile, record_function  # noqa: E402

MARK = "phase:"
KINDS = {
    "attention": r"scaled_dot_product|flash|fmha|attn|attention|varlen",
    "matrix products": r"aten::(add|b|badd)?mm\b|linear|matmul|gemm|nvjet|cutlass|xmma|wgmma|splitk",
    "optimizer": r"adam|multi_tensor|_foreach",
    "head: softmax, entropy, sampling": r"softmax|logsumexp|sort|topk|cumsum|searchsorted|exponential|multinomial",
    "views and allocations": r"aten::(\w*view|t|transpose|slice|as_strided|expand|empty\w*|permute|\w*squeeze|reshape|detach|resize_|split\w*|narrow|unbind|select)$",
    "copies and indexing": r"copy|clone|cat|index|gather|scatter|memcpy|memset|fill|zero|repeat|contiguous|triu",
}
REST = "elementwise and other"


class ProfilingClock(PhaseClock):
    """A clock that profiles the last step and marks its phases in the trace.

    Args:
        device: cpu or cuda.
        profiled_step: Index of the step that runs under the profiler.
    """

    def __init__(self, device: str, profiled_step: int) -> None:
        super().__init__(device)
        self.profiled_step = profiled_step
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])]
        self.profiler = profile(activities=activities, acc_events=True)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charges the block, and marks it."""
        with super().phase(name), record_function(MARK + name):
            yield

    def end_step(self) -> None:
        """Ends a step; the profiler starts before the profiled one and stops after it."""
        super().end_step()
        if len(self.steps) == self.profiled_step:
            self.profiler.start()
            self._reset()
        elif len(self.steps) == self.profiled_step + 1:
            self.profiler.stop()


def kind_of(name: str) -> str:
    """The kind of work of an operator or a kernel, by its name."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), REST)


def phase_boundaries(events: list[Any]) -> tuple[list[float], list[str]]:
    """Times in microseconds at which the innermost marked phase changes, ascending, and what it changes to."""
    changes = [(e.time_range.start, 1, e.name.removeprefix(MARK)) for e in events]
    changes += [(e.time_range.end, 0, "") for e in events]
    times, names, running = [0.0], [OTHER], [OTHER]
    for at, starts, name in sorted(changes):
        if starts:
            running.append(name)
        else:
            running.pop()
        times.append(at)
        names.append(running[-1])
    return times, names


def divide(clock: ProfilingClock) -> tuple[dict[str, Counter[str]], ...]:
    """Milliseconds of the profiled step by phase and kind, by phase and name, and calls by phase and name."""
    events = list(clock.profiler.events() or [])
    marks = [e for e in events if e.name.startswith(MARK) and e.device_type == DeviceType.CPU]
    times, names = phase_boundaries(marks)
    wanted = DeviceType.CUDA if clock.cuda else DeviceType.CPU
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    by_name: dict[str, Counter[str]] = defaultdict(Counter)
    calls: dict[str, Counter[str]] = defaultdict(Counter)
    for event in events:
        if event.device_type != wanted or event.name.startswith(MARK):
            continue
        spent = event.time_range.elapsed_us() if clock.cuda else event.self_cpu_time_total
        phase = names[bisect_right(times, event.time_range.start) - 1]
        name = event.name[:120]
        by_kind[phase][kind_of(name)] += spent / 1000
        by_name[phase][name] += spent / 1000
        calls[phase][name] += 1
    return by_kind, by_name, calls


def report(clock: ProfilingClock, warmup_steps: int) -> dict[str, Any]:
    """Phases with their wall and CPU milliseconds, the kinds of work inside them, and the most expensive names."""
    by_kind, by_name, calls = divide(clock)
    measured, profiled = clock.steps[warmup_steps : clock.profiled_step], clock.steps[clock.profiled_step]
    record = {"program": "", "parameters": 0, "device": "", "bytes_before_training": 0, "reserved_bytes": 0}
    summary = summarize(record | {"versions": {}}, measured)
    phases = {}
    for phase in sorted(profiled["wall_s"], key=lambda name: -summary["phase_s"].get(name, 0.0)):
        wall = 1000 * profiled["wall_s"][phase]
        kinds = {kind: round(spent, 3) for kind, spent in by_kind[phase].most_common()}
        rest = "idle" if clock.cuda else "outside operators"
        phases[phase] = {
            "ms": round(1000 * summary["phase_s"].get(phase, 0.0), 3),
            "cpu_ms": round(1000 * summary["phase_cpu_s"].get(phase, 0.0), 3),
            "peak_bytes": summary["phase_peak_bytes"].get(phase, 0),
            "profiled_ms": round(wall, 3),
            "profiled_ms_by_kind": kinds | {rest: round(max(0.0, wall - sum(kinds.values())), 3)},
            "most_expensive": [
                {"name": name, "ms": round(spent, 3), "calls": calls[phase][name]}
                for name, spent in by_name[phase].most_common(8)
            ],
        }
    return {
        "step_ms": round(1000 * summary["step_s"], 3),
        "step_cpu_ms": round(1000 * summary["step_cpu_s"], 3),
        "tokens": summary["tokens"],
        "phases": phases,
    }


def show(result: dict[str, Any]) -> None:
    """A table of phases and kinds."""
    print(f"step {result['step_ms']:.1f} ms, {result['step_cpu_ms']:.1f} ms of CPU")
    for name, phase in result["phases"].items():
        print(f"{name:20}{phase['ms']:10.1f} ms{phase['cpu_ms']:10.1f} cpu ms   under the profiler:")
        for kind, spent in phase["profiled_ms_by_kind"].items():
            print(f"    {kind:36}{spent:10.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=WORKLOADS, default="tiny")
    parser.add_argument("--steps", type=int, default=3, help="measured without the profiler, after one for warming up")
    parser.add_argument("--engine-options", type=json.loads, default={}, help="JSON: arguments of our generator")
    parser.add_argument("--max-tokens-per-microbatch", type=int, default=16384)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "profile", help="model, prompts")
    parser.add_argument("--trace", type=Path, help="also write the profiled step for chrome://tracing")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/profile_<shape>_<device>.json")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    workload = prepare(arguments)
    clock = ProfilingClock(workload.device, profiled_step=workload.warmup_steps + arguments.steps)
    train(workload, clock)
    result = {
        "command": this_command("benchmarks/profile_step.py"),
        "device": torch.cuda.get_device_name() if clock.cuda else platform.machine() + " cpu",
        "versions": versions(),
        "options": workload.options(),
        **report(clock, workload.warmup_steps),
    }
    show(result)
    if arguments.trace:
        clock.profiler.export_chrome_trace(str(arguments.trace))
    out = arguments.out or ROOT / "benchmarks" / "results" / f"profile_{workload.shape}_{workload.device}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def prepare(arguments: argparse.Namespace) -> Workload:
    """The workload of the side by side comparison, with one step more, its prompts and its model written down."""
    workload = replace(
        WORKLOADS[arguments.shape],
        device=arguments.device,
        dtype="bfloat16" if arguments.device == "cuda" else "float32",
        steps=arguments.steps + 1,
        engine_options=arguments.engine_options,
        max_tokens_per_microbatch=arguments.max_tokens_per_microbatch,
    )
    folder = arguments.folder / f"{workload.shape}_{workload.device}"
    folder.mkdir(parents=True, exist_ok=True)
    prompts, model = folder / "prompts.jsonl", folder / "model"
    rows = word_problems(max(256, (workload.warmup_steps + workload.steps) * workload.prompts_per_step))
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    make_model(workload.shape, prompts, model, workload.mean_length)
    return replace(workload, model=str(model), prompts=str(prompts))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # an engine in this process may hang at exit
