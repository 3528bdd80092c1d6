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


CARDS = {"H200": (989e12, 4.8e12), "H100": (989e12, 3.35e12)}
"""Dense bfloat16 operations and bytes of memory a second, from the vendor's data sheets."""


def limit(result: dict[str, Any]) -> dict[str, float] | None:
    """Seconds that the card alone needs for a step like ours; None without our side, or for a card that is not known.

    Generation reads weights in bfloat16 once for each token of the longest completion; training has six operations a parameter and
    token that is trained on.
    """
    card = next((numbers for name, numbers in CARDS.items() if name in result["device"]), None)
    ours = result["sides"].get("grpo_lightning")
    if card is None or ours is None:
        return None
    parameters, tokens = ours["parameters"], ours["tokens"]
    trained = tokens["trained_tokens"] / tokens["steps"]
    return {
        "generation": 2 * parameters * tokens["longest_completion"] / card[1],
        "training": 6 * parameters * trained / card[0],
    }


def shown_name(side: str, found: dict[str, Any]) -> str:
    """The side with its version, where its record has one."""
    return f"{side} {found['versions'].get(side) or ''}".strip()


def peer_lines(result: dict[str, Any]) -> list[str]:
    """A line for each side, in the order of the result."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
    for side, found in result["sides"].items():
        length, rate = found["tokens"]["mean_completion_length"], found["completion_tokens_per_s"]
        seconds = [f"{found[kind]:.2f}" for kind in ("step_s", "generation_s", "training_s")]
        numbers = [f"{rate:,.0f}", f"{rate / length:.1f}", f"{length:.0f}", f"{found['peak_bytes'] / 1e9:.1f}"]
        lines.append(f"| {' | '.join([shown_name(side, found), *seconds, *numbers])} |")
    least = limit(result)
    if least is not None:
        seconds = [f"{s:.2f}" for s in (sum(least.values()), least["generation"], least["training"])]
        lines.append(f"| {' | '.join(['limit of the card', *seconds, *['-'] * 4])} |")
    return lines


def peers(name: str, result: dict[str, Any]) -> str:
    """The part of the page about other trainers and this one."""
    where = (
        f"`{result['command']}`. Peaks of verl are the device's, of its trainer and its engine; the others' are of torch's "
        f"allocator. `benchmarks/peers/README.md` says what each is set to. The limit: weights read once a token of the longest "
        "completion, and six operations a parameter and token. "
        f"File: `benchmarks/results/{name}`."
    )
    where += f" {result['note']}" if "note" in result else ""
    lines = "\n".join(peer_lines(result))
    picture = f"![Seconds of a step of each trainer](images/{name.removesuffix('.json')}.svg)"
    return f"## Other trainers, shape {result['shape']}, {result['device']}\n\n{where}\n\n{lines}\n\n{picture}\n"
