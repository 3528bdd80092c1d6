"""Records of sides that train in any stage -> what each needed, and their ratios."""

from __future__ import annotations

from statistics import median
from typing import Any

from sides.compare import GENERATION


def summarize(record: dict[str, Any], warmup_steps: int) -> dict[str, Any]:
    """What one side needed: rates over the steps that count, in tokens a second; peaks in bytes.

    ``tokens_per_cpu_s`` is per second of the process on processors, which is what to read on a shared CPU.
    """
    steps = record["steps"][warmup_steps:]
    useful, positions = (sum(count(step["counts"]) for step in steps) for count in (_useful, _positions))
    seconds, cpu = ([sum(step[kind].values()) for step in steps] for kind in ("wall_s", "cpu_s"))
    sampling = [sum(step["wall_s"].get(name, 0.0) for name in GENERATION) for step in steps]
    training = sum(seconds) - sum(sampling)
    return {
        "program": record["program"],
        "tokens_per_s": round(useful / sum(seconds), 1),
        "tokens_per_cpu_s": round(useful / sum(cpu), 1),
        "step_s": round(median(seconds), 4),
        "step_s_range": [round(min(seconds), 4), round(max(seconds), 4)],
        "generation_s": round(median(sampling), 4),
        "training_tokens_per_s": round(useful / training, 1),
        "steps": len(steps),
        "tokens_per_step": round(useful / len(steps), 1),
        "positions_per_useful_token": round(positions / useful, 4),
        "peak_bytes": max(max(step["peak_bytes"].values()) for step in steps),
        "bytes_before_training": record["bytes_before_training"],
        "losses": [step["notes"].get("loss") for step in record["steps"]],
        "slow_ways": record.get("slow_ways"),
        "parameters": record["parameters"],
        "device": record["device"],
        "versions": record["versions"],
    }


def ratios(sides: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Of each of our ways against each of TRL's: above 1, ours is faster, or needs less memory."""
    found = {}
    for mine in (name for name in sides if name.startswith("ours")):
        for theirs in (name for name in sides if name.startswith("trl")):
            for rate in ("tokens_per_s", "training_tokens_per_s", "tokens_per_cpu_s"):
                found[f"{rate}: {mine} / {theirs}"] = round(sides[mine][rate] / sides[theirs][rate], 3)
            found[f"peak_bytes: {theirs} / {mine}"] = round(sides[theirs]["peak_bytes"] / sides[mine]["peak_bytes"], 3)
    return found


def _useful(counts: dict[str, int]) -> int:
    """Tokens of all completions, each with its prompt, without padding."""
    if "useful_tokens" in counts:
        return counts["useful_tokens"]
    return counts["prompt_tokens"] + counts["completion_tokens"]


def _positions(counts: dict[str, int]) -> int:
    """What training passes computed, padding included."""
    return counts["positions"] if "positions" in counts else counts["trained_tokens"]
