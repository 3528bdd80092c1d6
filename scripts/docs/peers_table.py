"""The table of other trainers, of a result of benchmarks/vs_peers.py."""

from __future__ import annotations

from typing import Any

HEADINGS = (
    "trainer",
    "a step, s",
    "generation, s",
    "training, s",
    "tokens/s",
    "completions/s",
    "mean length",
    "peak GB",
)


def peer_lines(result: dict[str, Any]) -> list[str]:
    """A line for each side, in the order of the result."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
    for side, found in result["sides"].items():
        length, rate = found["tokens"]["mean_completion_length"], found["completion_tokens_per_s"]
        seconds = [f"{found[kind]:.2f}" for kind in ("step_s", "generation_s", "training_s")]
        numbers = [f"{rate:,.0f}", f"{rate / length:.1f}", f"{length:.0f}", f"{found['peak_bytes'] / 1e9:.1f}"]
        name = f"{side} {found['versions'].get(side) or ''}".strip()
        lines.append(f"| {' | '.join([name, *seconds, *numbers])} |")
    return lines


def peers(name: str, result: dict[str, Any]) -> str:
    """The part of the page about other trainers and this one."""
    where = (
        f"`{result['command']}`. Peaks of verl are the device's, of its trainer and its engine; the others' are of torch's "
        f"allocator. `benchmarks/peers/README.md` says what each is set to. File: `benchmarks/results/{name}`."
    )
    lines = "\n".join(peer_lines(result))
    return f"## Other trainers, shape {result['shape']}, {result['device']}\n\n{where}\n\n{lines}\n"
