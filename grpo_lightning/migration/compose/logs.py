"""How often what is logged, and where to."""

from __future__ import annotations

from typing import Any

from grpo_lightning.migration.compose.loggers import FURTHER, KEYS, LOGGERS, OWN_FOLDER, TAKEN, UNKNOWN, WITHOUT
from grpo_lightning.migration.compose.steps import TOTAL, in_steps, updates
from grpo_lightning.migration.migration import Migration


def compose_logging(m: Migration) -> None:
    """Interval and loggers."""
    _interval(m)
    targets = m.get("report_to")
    targets = [targets] if isinstance(targets, str) else targets or []
    names = [name for name in targets if name in LOGGERS]
    for name in targets:
        if name not in LOGGERS and name != "none":
            m.refuse("report_to", WITHOUT.get(name, UNKNOWN.format(name=name)))
    if names:
        m.put("trainer.logger", [_logger(m, name) for name in names], "report_to")
    for key in KEYS:
        if not any(key in TAKEN[name] | FURTHER.get(name, {}) for name in names):
            takers = [name for name in LOGGERS if key in TAKEN[name] | FURTHER.get(name, {})]
            m.refuse(key, f"It belongs to {' and '.join(takers)}, and report_to names none of these.")
    m.needs_nothing("report_to")


def _interval(m: Migration) -> None:
    steps = m.get("logging_steps")
    strategy = choice(m, "logging_strategy", "steps")
    if strategy != "steps":
        m.refuse("logging_strategy", f"{strategy}: trainer.log_every_n_steps counts steps; every step is written.")
    elif steps:
        every = in_steps(m, float(steps))
        if every is None:
            m.refuse("logging_steps", f"{steps:g} is a share of the run: {TOTAL}. Until then every step is logged.")
        else:
            m.put("trainer.log_every_n_steps", max(1, every // updates(m)), "logging_steps", "logging_strategy")
    m.needs_nothing("logging_strategy", "logging_steps")


def _logger(m: Migration, name: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {"save_dir": m.get("output_dir") or "runs/grpo"} if name in OWN_FOLDER else {}
    further: dict[str, Any] = {}
    for taken, into in ((TAKEN[name], arguments), (FURTHER.get(name, {}), further)):
        for key, argument in taken.items():
            if m.get(key):
                into[argument] = m.get(key)
                m.mapped.setdefault(m.written.get(key, key), []).append("trainer.logger")
    logger: dict[str, Any] = {"class_path": LOGGERS[name], "init_args": arguments}
    return logger | ({"dict_kwargs": further} if further else {})


def choice(m: Migration, key: str, default: str) -> str:
    """The value of one of transformers' enumerations; YAML 1.1 reads a bare no as False."""
    value = m.get(key, default)
    return "no" if value is False else str(getattr(value, "value", value))
