"""A run as the README.md of the model that it made: what was trained how, and what came of it."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence

from grpo_lightning.report.headline import evaluated_steps, headline, held_out_accuracy, num_steps, percent
from grpo_lightning.report.metrics import EDGE, Series
from grpo_lightning.report.run import Run

CURVES = ("reward", "val/accuracy", "completions/mean_length", "entropy", "kl")
"""Metrics whose start and end the card has; the first that a run has is drawn."""
DRAWING = "curve.svg"
LEARNING = ("model.", "data.", "seed_everything")
"""Settings that decide what is learnt; others name places of the machine and stay out of a card."""


def model_card(run: Run, base_model: str, commit: str = "") -> str:
    """Markdown with the hub's front matter.

    Args:
        run: Of the model.
        base_model: What training started from; named in the front matter where it is a name on the hub.
        commit: Of the code that the run's folder belongs to; empty where there is none.
    """
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [grpo, grpo_lightning]"]
    if _is_on_the_hub(base_model):
        front.append(f"base_model: {json.dumps(base_model)}")
    said = headline(run)
    versions = run.system.get("packages", {})
    made = f"grpo_lightning {versions.get('grpo-lightning', '')}".strip() + (f", commit {commit}" if commit else "")
    lines = [
        *front, "---", "",
        f"# {run.name}", "",
        f"{_public(base_model)}, trained with GRPO ([DeepSeekMath](https://arxiv.org/abs/2402.03300)) by {made}, "
        f"{num_steps(run)} steps.", "",
        *([said[0].upper() + said[1:] + ".", ""] if said else []),
        *_held_out(run), *_curves(run),
        "## Settings", "", "```yaml",
        *(f"{name}: {_public(value)}" for name, value in sorted(run.settings.items()) if name.startswith(LEARNING)),
        "```", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _held_out(run: Run) -> list[str]:
    accuracy = held_out_accuracy(run)
    if accuracy is None:
        return []
    before, after = map(percent, accuracy)
    steps = evaluated_steps(run)
    return [
        "## Held-out accuracy",
        "",
        "| before training | after |" if steps is None else f"| step {steps[0]} | step {steps[1]} |",
        "|---|---|",
        f"| {before} | {after} |",
        "",
    ]


def _curves(run: Run) -> list[str]:
    known = [name for name in CURVES if name in run.metrics]
    if not known:
        return []
    rows = [(name, *run.metrics[name].edge_means(EDGE)) for name in known]
    return [
        f"## {known[0]} over steps",
        "",
        f"![{known[0]} over steps]({DRAWING})",
        "",
        f"| mean over {percent(EDGE)} of the steps | first | last |",
        "|---|---|---|",
        *(f"| {name} | {first:.4g} | {last:.4g} |" for name, first, last in rows),
        "",
    ]


def drawing(run: Run) -> str:
    """The first of the card's curves as SVG; empty where the run has none."""
    name = next((name for name in CURVES if name in run.metrics), None)
    return "" if name is None else svg_curve(name, run.metrics[name])


def svg_curve(name: str, series: Series, width: int = 640, height: int = 240) -> str:
    """One curve with the ends of its axes named."""
    low, high = min(series.values), max(series.values)
    xs = _scaled(series.steps, 60, width - 20)
    ys = [height - 30 - y for y in _scaled(series.values, 0, height - 60)]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
    texts = [
        (4, 34, f"{high:.3g}"), (4, height - 30, f"{low:.3g}"), (60, 16, name),
        (60, height - 8, str(series.steps[0])), (width - 90, height - 8, f"step {series.steps[-1]}"),
    ]  # fmt: skip
    labels = "".join(f'<text x="{x}" y="{y}">{html.escape(text)}</text>' for x, y, text in texts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
        f'<rect width="{width}" height="{height}" fill="white"/>{labels}'
        f'<polyline points="{points}" fill="none" stroke="#1f6fd6" stroke-width="2"/></svg>\n'
    )


def _scaled(values: Sequence[float], start: float, end: float) -> list[float]:
    low, high = min(values), max(values)
    return [start + (end - start) * ((value - low) / (high - low) if high > low else 0.5) for value in values]


def _is_on_the_hub(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~")) and parts[0] not in ("assets", "runs")


def _public(value: str) -> str:
    """A setting without the folders of this machine.

    Example:
        >>> _public("/data/train.jsonl"), _public("org/model"), _public("1e-5")
        ('train.jsonl', 'org/model', '1e-5')
    """
    text = " ".join(value.split())
    if text.startswith(("/", "~")) or ":\\" in text[:3]:
        return text.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return text
