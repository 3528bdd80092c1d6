"""The picture of other trainers, of a result of benchmarks/vs_peers.py: a bar for the step of each, in parts."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from peers_table import limit, shown_name

COLOURS = {"generation": "#4c78a8", "training": "#f58518", "rest": "#bab0ac"}
LEFT, WIDTH, BAR, GAP, TOP = 150, 560, 26, 12, 40
"""Pixels: of names, of the longest bar, of a bar's height, between bars, above them."""


def bars(result: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Of each side, and of the card's limit, the seconds of the parts of a step."""
    found = []
    for side, each in result["sides"].items():
        parts = {"generation": each["generation_s"], "training": each["training_s"]}
        found.append((shown_name(side, each), parts | {"rest": max(0.0, each["step_s"] - sum(parts.values()))}))
    seconds = limit(result)
    return found if seconds is None else [*found, ("limit of the card", seconds)]


def picture(result: dict[str, Any]) -> str:
    """An SVG image."""
    rows = bars(result)
    scale = WIDTH / max(sum(parts.values()) for _, parts in rows)
    height = TOP + len(rows) * (BAR + GAP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 90} {height}" font-family="sans-serif" font-size="14">',
        f'<rect width="100%" height="{height}" fill="white"/>',
    ]
    for place, (part, colour) in enumerate(COLOURS.items()):
        lines.append(f'<rect x="{LEFT + 120 * place}" y="10" width="14" height="14" fill="{colour}"/>')
        lines.append(f'<text x="{LEFT + 120 * place + 20}" y="22">{part}</text>')
    for place, (name, parts) in enumerate(rows):
        x, y = float(LEFT), TOP + place * (BAR + GAP)
        lines.append(f'<text x="{LEFT - 8}" y="{y + 18}" text-anchor="end">{escape(name)}</text>')
        for part, seconds in parts.items():
            lines.append(
                f'<rect x="{x:.1f}" y="{y}" width="{seconds * scale:.1f}" height="{BAR}" fill="{COLOURS[part]}"/>'
            )
            x += seconds * scale
        lines.append(f'<text x="{x + 6:.1f}" y="{y + 18}">{sum(parts.values()):.1f} s</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def draw(results: Path, images: Path) -> None:
    """Writes the picture of every such result in a folder into another."""
    for path in results.glob("peers_*.json"):
        (images / f"{path.stem}.svg").write_text(picture(json.loads(path.read_text("utf-8"))), encoding="utf-8")
