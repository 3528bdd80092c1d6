"""Records of both sides -> medians of each, and their ratios."""

from __future__ import annotations

from statistics import median
from typing import Any

GENERATION = ("generate", "weight_sync")
TRAINING = ("training", "old_and_reference", "forward", "backward", "optimizer")
Step = dict[str, Any]


def summarize(record: dict[str, Any], steps: list[Step]) -> dict[str, Any]:
    """What one side needed: medians over steps in seconds, totals in tokens, peaks in bytes.

    ``*_cpu_s`` are process CPU seconds, for a side that has them. Peak bytes are of torch's allocator on a GPU, of the process on the CPU.
    """
    kinds = {suffix: kind for suffix, kind in (("", "wall_s"), ("_cpu", "cpu_s")) if kind in steps[0]}
    result: dict[str, Any] = {"program": record["program"]}
    for suffix, kind in kinds.items():
        result[f"step{suffix}_s"] = _median(sum(step[kind].values()) for step in steps)
        result[f"generation{suffix}_s"] = _median(_seconds(step, kind, GENERATION) for step in steps)
        result[f"training{suffix}_s"] = _median(_seconds(step, kind, TRAINING) for step in steps)
    walls = [sum(step["wall_s"].values()) for step in steps]
    result["step_s_range"] = [round(min(walls), 6), round(max(walls), 6)]
    names = sorted({name for step in steps for name in step["wall_s"]})
    for suffix, kind in kinds.items():
        result[f"phase{suffix}_s"] = {name: _median(step[kind].get(name, 0.0) for step in steps) for name in names}
    peaks = {name: max(step["peak_bytes"].get(name, 0) for step in steps) for name in names}
    result["peak_bytes"] = max(peaks.values())
    result["training_peak_bytes"] = max(peaks.get(name, 0) for name in TRAINING)
    result["phase_peak_bytes"] = peaks
    result |= {name: record[name] for name in ("bytes_before_training", "reserved_bytes", "parameters", "device")}
    for name in {name for step in steps for name in step["notes"]}:
        result[name] = _median(step["notes"][name] for step in steps)
    result["tokens"] = _tokens(steps)
    result |= _rates(result, steps)
    result["versions"] = record["versions"]
    return result


def _tokens(steps: list[Step]) -> dict[str, Any]:
    """Totals over the steps; ``trained`` counts every position that a training pass computes, padding included."""
    names = ("completions", "prompt_tokens", "completion_tokens", "trained_tokens")
    totals = {name: sum(step["counts"][name] for step in steps) for name in names}
    useful = totals["prompt_tokens"] + totals["completion_tokens"]
    return totals | {
        "steps": len(steps),
        "mean_completion_length": round(totals["completion_tokens"] / totals["completions"], 2),
        "mean_prompt_length": round(totals["prompt_tokens"] / totals["completions"], 2),
        "longest_completion": max(step["counts"]["longest_completion"] for step in steps),
        "trained_per_useful_token": round(totals["trained_tokens"] / useful, 4),
    }


def _rates(result: dict[str, Any], steps: list[Step]) -> dict[str, float]:
    """Tokens a second, and arithmetic of the training phase on useful tokens.

    Useful are the prompt and completion tokens of all completions, without padding, each prompt once per completion; a
    token costs 6 operations per parameter, forward and backward.
    """
    tokens = result["tokens"]
    generation = sum(_seconds(step, "wall_s", GENERATION) for step in steps)
    training = sum(_seconds(step, "wall_s", TRAINING) for step in steps)
    wall, cpu = (sum(sum(step.get(kind, {}).values()) for step in steps) for kind in ("wall_s", "cpu_s"))
    useful = tokens["prompt_tokens"] + tokens["completion_tokens"]
    per_cpu = {"completion_tokens_per_cpu_s": round(tokens["completion_tokens"] / cpu, 2)} if cpu else {}
    return {
        "completion_tokens_per_s": round(tokens["completion_tokens"] / wall, 2),
        **per_cpu,
        "generation_tokens_per_s": round(tokens["completion_tokens"] / generation, 2),
        "training_tokens_per_s": round(useful / training, 2),
        "training_tflops_on_useful_tokens": round(6e-12 * result["parameters"] * useful / training, 4),
    }


def ratios(trl: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    """TRL's figure over ours: above 1, this project needs less. Per token: both sampled other completions."""

    def over(name: str) -> float:
        return round(trl[name] / ours[name], 3)

    names = ("step", "generation", "training")
    result = {f"{name}_ratio": over(f"{name}_s") for name in names}
    result |= {f"{name}_cpu_ratio": over(f"{name}_cpu_s") for name in names}
    for kind in ("s", "cpu_s"):
        rate = f"completion_tokens_per_{kind}"
        result[f"step_{kind.removesuffix('s')}ratio_per_token"] = round(ours[rate] / trl[rate], 3)
    result["peak_memory_ratio"] = over("peak_bytes")
    result["training_peak_memory_ratio"] = over("training_peak_bytes")
    added = [side["peak_bytes"] - side["bytes_before_training"] for side in (trl, ours)]
    result["added_memory_ratio"] = round(added[0] / max(added[1], 1), 3)
    return result


def _seconds(step: Step, kind: str, phases: tuple[str, ...]) -> float:
    return sum(step[kind].get(name, 0.0) for name in phases)


def _median(values: Any) -> float:
    return round(median(values), 6)
