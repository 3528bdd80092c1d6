"""The first second of a command: help or an error about the config is complete in it, a run says that it starts."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence

from grpo_lightning.commands.module_choice import OPTION, with_one_option
from grpo_lightning.commands.settings.check import config_files, mistakes
from grpo_lightning.commands.settings.help_page import front_page, topic_page, unknown_topic
from grpo_lightning.commands.settings.table import load_table

SHOWN = 10
"""Mistakes; whoever has more has given another program's config."""
RANKS = ("LOCAL_RANK", "SLURM_PROCID", "RANK")
"""Above 0 in processes that a launcher started beside the first one."""

NUMBERS = (*RANKS, "JSM_NAMESPACE_RANK", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_RESTART_COUNT")
"""Variables of launchers that Lightning and torchmetrics read as numbers, some of them while they are imported."""


def first_words(command: str, does: str, options: Sequence[str], program: str = "grpo") -> bool:
    """Prints what can be said before torch, Lightning and transformers are imported.

    Args:
        command: As it was typed, such as ``fit``.
        does: What it does, after its name.
        options: What follows it.
        program: Of the table.

    Returns:
        Whether this is the first process of a run, as far as its settings have been looked at.

    Raises:
        SystemExit: After help, and with 2 where the config cannot be meant as it stands.
    """
    table = load_table(program)
    has_own_class = any(word.partition("=")[0] == OPTION for word in with_one_option(options))
    asked = [n for n, word in enumerate(options) if word in ("-h", "--help")]
    if asked and not has_own_class:  # the settings of a user's class are known to the full parser alone
        topic = next(iter(options[asked[0] + 1 :]), None)
        page = front_page(command, does, table) if topic is None else topic_page(topic.lstrip("-"), table)
        if page is None:
            raise SystemExit(unknown_topic(str(topic), table))
        print(page)
        raise SystemExit(0)
    if asked or any(word.partition("=")[0].endswith(".help") for word in options):
        return False
    found = no_numbers(os.environ) or mistakes(options, table)
    if found:
        more = [f"and {len(found) - SHOWN} more."] if len(found) > SHOWN else []
        sys.stderr.write("\n".join([*(f"error: {text}" for text in found[:SHOWN]), *more, ""]))
        raise SystemExit(2)
    is_first = all(os.environ.get(rank, "0") == "0" for rank in RANKS)
    is_run = is_first and not any(word.startswith("--print_config") for word in options)
    if is_run:
        files = " and ".join(config_files(options)) or "the command line"
        said = f"{command}: settings of {files} are read; importing torch, Lightning and transformers."
        print(between_words(said) if sys.stdout.isatty() else said, flush=True)
    return is_run


def no_numbers(environment: Mapping[str, str]) -> list[str]:
    """Variables of launchers that hold no number of a process, each with what to do.

    Example:
        >>> no_numbers({"RANK": "0", "LOCAL_RANK": "first"})
        ["the environment variable LOCAL_RANK is 'first', not a number. Unset it, unless a launcher numbers processes with it."]
    """
    return [
        f"the environment variable {name} is {environment[name]!r}, {fault}. Unset it, unless a launcher numbers "
        "processes with it."
        for name in NUMBERS
        if name in environment and (fault := _fault_of_number(environment[name])) is not None
    ]


def _fault_of_number(text: str) -> str | None:
    """Older launchers write -1 where there are no ranks; Lightning would take that for a process beside the first one."""
    try:
        return "below 0, where numbers of processes begin" if int(text) < 0 else None
    except ValueError:
        return "not a number"


def between_words(text: str) -> str:
    """The text for the terminal as it is, broken between words; a terminal itself breaks in the middle of one."""
    width = shutil.get_terminal_size().columns
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
