"""``fit --help`` as a page that a person reads, and ``fit --help model.rewards`` as what there is about a setting."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from grpo_lightning.commands.settings.table import KnownClass, Setting, SettingsTable
from grpo_lightning.commands.settings.values import wanted
from grpo_lightning.settings.names import hint

MOST_SET = (
    "model.model_name_or_path",
    "model.rewards",
    "data.dataset",
    "data.eval_dataset",
    "data.batch_size",
    "model.num_generations",
    "model.max_completion_length",
    "model.optimizer.lr",
    "trainer.max_steps",
    "trainer.default_root_dir",
)
TEXTS = {
    "model.optimizer.lr": "Learning rate of AdamW, 1e-6; model.optimizer names another optimizer.",
    "trainer.max_steps": "Optimizer steps of the run; -1 for no limit.",
    "trainer.default_root_dir": "Folder of checkpoints, logs and exports.",
}
"""Of settings whose own text is Lightning's or torch's."""
ABOUT = {
    "trainer": "Lightning's Trainer: steps, devices, precision, strategy, callbacks, loggers",
    "model": "policy, rewards, sampling, loss, optimizer",
    "data": "prompts to train and to evaluate on",
    "checkpoint": "when checkpoints are written, and which are kept",
    "alarms": "when a run that no longer learns warns or stops",
    "export": "the trained policy in Hugging Face format",
    "completions": "completions as Parquet",
    "samples": "the table of completions in the terminal",
}
WIDTH = 100


def front_page(command: str, does: str, table: SettingsTable) -> str:
    """What ``COMMAND --help`` prints."""
    names = [name for name in MOST_SET if name.removesuffix(".lr") in table.settings]
    rows = [_row(name, _text_of(name, table)) for name in names]
    sections = [_row(name, about) for name, about in ABOUT.items() if name in table.sections]
    return "\n".join(
        [
            f"usage: grpo_lightning {command} --config run.yaml [--SETTING VALUE ...]",
            "",
            f"{command} {does}.",
            "Every setting is a key of the YAML file and an option of the same name.",
            "",
            "Most runs set:",
            *rows,
            "",
            "Sections:",
            *sections,
            "",
            "More:",
            _row(f"{command} --help model", "a section"),
            _row(f"{command} --help model.rewards", "a setting"),
            _row(f"{command} --help VLLMColocate", "a class that a setting names"),
            _row(f"{command} --config run.yaml --print_config", "all settings with the values of a run"),
            _row(f"{command} --config run.yaml --ckpt_path last", "go on from the newest checkpoint"),
            "",
            "A config to start from: configs/quickstart.yaml. Every setting: docs/configuration.md.",
        ]
    )


def topic_page(topic: str, table: SettingsTable) -> str | None:
    """What there is about a section, a setting or a class; None where it is none of them."""
    if topic in table.settings:
        page = [*_about_setting(topic, table.settings[topic])]
        family = table.classes.get(topic, {})
        own = [name for name, known in family.items() if known.module.startswith("grpo_lightning")]
        if family:
            page += ["", "Classes:", *(f"  {name}" for name in own)]
            rest = sorted(set(family) - set(own))
            page += (
                textwrap.wrap(f"and {', '.join(rest)}", WIDTH, initial_indent="  ", subsequent_indent="  ")
                if rest
                else []
            )
        return "\n".join(page)
    below = [name for name in table.settings if name.startswith(f"{topic}.")]
    if below:
        about = [f"{topic}: {ABOUT[topic]}", ""] if topic in ABOUT else []
        return "\n".join([*about, *(line for name in below for line in _about_setting(name, table.settings[name]))])
    for family in table.classes.values():
        for name, known in family.items():
            if known.is_called(topic, name):
                return "\n".join(_about_class(name, known))
    return None


def unknown_topic(topic: str, table: SettingsTable) -> str:
    """The error for a topic that is none."""
    classes = [name for family in table.classes.values() for name in family]
    meant = hint(topic, [*table.settings, *table.sections, *classes])
    sections = ", ".join(name for name in ABOUT if name in table.sections)
    return f"error: there is no help on {topic}. {meant or f'Sections: {sections}.'}"


def _row(name: str, text: str) -> str:
    short = textwrap.shorten(text, WIDTH - 36, placeholder=" ...")
    return f"  {name:<32}  {short}" if len(name) <= 32 else f"  {name}\n{'':36}{short}"


def _text_of(name: str, table: SettingsTable) -> str:
    return TEXTS[name] if name in TEXTS else table.settings[name].text


def _about_setting(name: str, setting: Setting) -> Iterator[str]:
    has_default = not setting.is_required
    yield f"{name}  ({wanted(setting)}{f'; default {_shown(setting.default)}' if has_default else '; required'})"
    text = TEXTS.get(name, setting.text)
    yield from textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ")


def _about_class(name: str, known: KnownClass) -> Iterator[str]:
    yield f"{name}, of {known.module}"
    yield from textwrap.wrap(known.text, WIDTH)
    yield ""
    for key, argument in known.arguments.items():
        yield from _about_setting(key, argument)
    if known.is_open:
        yield "and further arguments."


def _shown(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value
