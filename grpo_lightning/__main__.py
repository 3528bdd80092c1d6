"""``python -m grpo_lightning COMMAND``; safe to import again in processes that launchers start.

What a command needs is imported once it is chosen: Lightning and transformers take seconds, which ``--help``,
``report`` and ``migrate`` do not have to wait for.
"""

from __future__ import annotations

import os
import sys
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from grpo_lightning.commands import COMMANDS, STAGE_SUBCOMMANDS, STAGES
from grpo_lightning.errors import write_all_text
from grpo_lightning.uncollected import uncollected
from grpo_lightning.version import __version__

PROGRAM = "grpo_lightning"
"""The script that pip installs."""
LIGHTNING_COMMANDS = {
    "fit": "trains the policy",
    "validate": "evaluates a policy on data.eval_dataset",
    "test": "evaluates it on data.test_dataset, or where that is not set on data.eval_dataset",
    "predict": "writes completions of the same prompts with their rewards",
}


def help_text() -> str:
    """What ``--help`` prints."""
    groups = {"GRPO, by Lightning's command line": LIGHTNING_COMMANDS, "Beside it": COMMANDS}
    listed = "\n\n".join(
        "\n".join([f"{title}:", *(f"  {name:<10}{does}" for name, does in commands.items())])
        for title, commands in groups.items()
    )
    return (
        "usage: grpo_lightning COMMAND ...\n\nGRPO on PyTorch Lightning: fit --config run.yaml starts a run.\n\n"
        f"{listed}\n\ngrpo_lightning COMMAND --help says more about each, --version which version this is."
    )


def main(args: list[str] | None = None) -> None:
    """Entry point of ``python -m grpo_lightning`` and of the ``grpo_lightning`` command."""
    arguments = sys.argv[1:] if args is None else args
    is_program = args is None and (__name__ == "__main__" or Path(sys.argv[0]).name == PROGRAM)
    if not {"", os.getcwd()} & set(sys.path):  # as `python -m` does: a config names rewards and modules beside it
        sys.path.insert(0, os.getcwd())
    if arguments in (["-h"], ["--help"]):
        print(help_text())
    elif arguments == ["--version"]:
        print(PROGRAM, __version__)
    elif not arguments:
        raise SystemExit(f"{help_text()}\n\nerror: no COMMAND was given.")
    elif arguments[0] in STAGES:
        begin(arguments, is_program)
        with uncollected():
            from grpo_lightning.commands.stage_cli import main as run_stage
        raise SystemExit(run_stage(arguments[0], arguments[1:]))
    elif arguments[0] in COMMANDS:
        begin(arguments, is_program)
        with uncollected():
            command = import_module(f"grpo_lightning.commands.{arguments[0]}")
        raise SystemExit(command.main(arguments[1:]))
    elif not arguments[0].startswith("-") and arguments[0] not in LIGHTNING_COMMANDS:
        raise SystemExit(unknown_command(arguments[0]))
    else:
        begin(arguments, is_program)
        with uncollected():
            from grpo_lightning.commands.cli import main as run_lightning
        run_lightning(args)


def unknown_command(word: str) -> str:
    """What is answered to a word that is no command.

    Example:
        >>> unknown_command("fti")
        'error: fti is no COMMAND. Did you mean fit? grpo_lightning --help lists all of them.'
    """
    names = [*LIGHTNING_COMMANDS, *COMMANDS]
    swapped = [name for name in names if sorted(name) == sorted(word)]
    near = swapped or get_close_matches(word, names, 1)
    meant = f"Did you mean {near[0]}?" if near else f"Choose one of {', '.join(names)}."
    return f"error: {word} is no COMMAND. {meant} grpo_lightning --help lists all of them."


def begin(arguments: list[str], is_program: bool = False) -> None:
    """What is said at once: help, mistakes in the config's keys and types, or that the run is on its way.

    Args:
        arguments: With a command first, or an option of Lightning's command line, which is left to it.
        is_program: Whether this process was started as ``grpo_lightning``, and not as a script that calls it: the other
            ranks can then start the same way, before Lightning asks for them.
    """
    command, *options = arguments
    is_stage = command in STAGES
    if command in LIGHTNING_COMMANDS or is_stage:
        from grpo_lightning.commands.settings.start import first_words

        does = LIGHTNING_COMMANDS.get(command) or COMMANDS[command]
        names_how = is_stage and any(word in STAGE_SUBCOMMANDS for word in options[:1])
        words = options[names_how:]
        if first_words(command, does, words, program=command if is_stage else "grpo") and is_program:
            from grpo_lightning.commands.settings.ranks import ranks_here
            from grpo_lightning.distributed.early_ranks import start_early

            start_early(ranks_here(words), f"grpo_lightning.commands.{'stage_cli' if is_stage else 'cli'}", arguments)
    write_all_text()


if __name__ == "__main__":
    main()
