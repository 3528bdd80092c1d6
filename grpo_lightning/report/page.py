"""Runs -> one HTML file that needs no network."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.resources import files
from string import Template
from typing import Any

from grpo_lightning.report.headline import headline, held_out_accuracy, num_steps
from grpo_lightning.report.metrics import EDGE, Series
from grpo_lightning.report.notices import notices
from grpo_lightning.report.run import Run
from grpo_lightning.version import __version__

SCRIPTS = (
    *("state", "format", "metrics", "axes", "curves", "charts", "card_tools", "overview"),
    *("diff", "filter", "table", "columns", "detail", "held_out", "settings", "address", "main"),
)
"""Parts of the page's script, in order; they share one scope."""


def render_page(runs: Sequence[Run]) -> str:
    """The report as HTML text.

    Data is embedded compressed and is only ever turned into text nodes, and a content security policy forbids
    scripts other than the page's own as well as every connection: what a model wrote cannot act.
    """
    script = _script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:"
    overview = {
        "runs": [_overview(run) for run in runs],
        "seeds": seed_groups(runs),
        "version": __version__,
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }
    page = Template(_asset("page.html"))
    return page.substitute(
        title=html.escape(", ".join(run.name for run in runs)),
        policy=policy,
        style=_vendor("uPlot.css") + _asset("style.css"),
        script=script,
        overview=packed(overview),
        completions=packed([run.completions for run in runs]),
    )


def packed(value: Any) -> str:
    """JSON, gzipped, in base64: about a tenth of the size of the text for completions, and inert in HTML."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), compresslevel=6, mtime=0)).decode()


def _overview(run: Run) -> dict[str, Any]:
    metrics = {name: [series.steps, [_short(v) for v in series.values]] for name, series in run.metrics.items()}
    return {
        "name": run.name,
        "metrics": metrics,
        "edges": {name: [_short(v) for v in series.edge_means(EDGE)] for name, series in run.metrics.items()},
        "headline": headline(run),
        "held_out": held_out_accuracy(run),
        "steps": num_steps(run),
        "phases": phase_seconds(run.metrics),
        "launches": run.launches,
        "age": round(run.age),
        "config": run.config,
        "settings": run.settings,
        "system": run.system,
        "summary": run.summary,
        "notices": [asdict(notice) for notice in notices(run.metrics, run.settings, run.launches)],
    }


def _short(value: float) -> float:
    """Six significant digits: more than a curve shows, half the bytes."""
    return float(f"{value:.6g}")


def _script() -> str:
    parts = "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    return f'{_vendor("uPlot.js")}\n(() => {{\n"use strict";\n{parts}\n}})();\n'


def _asset(name: str) -> str:
    return (files("grpo_lightning.report") / "page" / name).read_text(encoding="utf-8")


def _vendor(name: str) -> str:
    return (files("grpo_lightning.report") / "vendor" / "uplot" / name).read_text(encoding="utf-8")


def phase_seconds(metrics: dict[str, Series]) -> dict[str, float]:
    """Seconds of a mean step, by phase; ``other`` is what no phase has, and all together are the step.

    A phase is a block of the step, ``time/<phase>``. What rewards log below that, ``time/rewards/<name>`` and its
    maximum, are calls that run at the same time as others and as the phases, so they are none.

    Example:
        >>> metrics = {"step_time": 4.0, "time/generate": 3.0, "time/train": 0.5, "time/rewards/judge": 2.5}
        >>> phase_seconds({name: Series([0], [seconds]) for name, seconds in metrics.items()})
        {'generate': 3.0, 'train': 0.5, 'other': 0.5}
    """
    step_time = metrics.get("step_time")
    if step_time is None:
        return {}
    count, step = len(step_time.values), sum(step_time.values) / len(step_time.values)
    found = {match[1]: sum(metrics[name].values) / count for name in metrics if (match := PHASE.fullmatch(name))}
    together = sum(found.values())
    if together > step:  # each is that of its slowest rank, and they need not be the same
        return {name: seconds * step / together for name, seconds in found.items()}
    return found | {"other": step - together}


PHASE = re.compile(r"time/([^/]+)")


SEEDS = {"seed_everything", "model.seed", "data.seed"}
PLACES = {"trainer.default_root_dir", "trainer.logger", "ckpt_path", "config"}
"""Where a run writes, and what it goes on from: of no weight for what it learns."""


def seed_groups(runs: Sequence[Run]) -> list[list[int]]:
    """Numbers of the runs with equal settings and different seeds, a list for each config that has at least two.

    Example:
        >>> runs = [Run("", {}, 1, 0.0, settings={"seed_everything": s, "model.beta": b}) for s, b in ("00", "10", "01")]
        >>> seed_groups(runs)
        [[0, 1]]
    """
    groups: dict[frozenset[tuple[str, str]], list[int]] = {}
    for number, run in enumerate(runs):
        if run.settings:
            groups.setdefault(frozenset(_learning(run)), []).append(number)
    return [group for group in groups.values() if len({runs[i].settings.get("seed_everything") for i in group}) > 1]


def _learning(run: Run) -> set[tuple[str, str]]:
    return {
        (name, value)
        for name, value in run.settings.items()
        if name not in SEEDS | PLACES and not name.startswith("trainer.logger.") and not name.endswith(".dirpath")
    }
