"""``python -m grpo_lightning report RUN_DIR [RUN_DIR ...]``: one HTML page about one or several runs."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

from grpo_lightning.commands.arguments import CommandParser
from grpo_lightning.report import read_run, render_page
from grpo_lightning.rewards.text.valid_text import valid_text


class NotWrittenError(OSError):
    """The disk is full or read-only, or something else has the page's name."""


def build_parser() -> CommandParser:
    """The command's options."""
    parser = CommandParser(
        prog="grpo_lightning report",
        description="Writes one self-contained HTML page: curves, completions, config. Runs may still be running; "
        "several are laid over each other.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="what trainer.default_root_dir named")
    parser.add_argument("--output", type=Path, help="the page; by default report.html in the first RUN_DIR")
    parser.add_argument(
        "--max_completions", type=int, default=100_000, help="completions in the page, over all runs (default 100000)"
    )
    parser.add_argument(
        "--every", type=float, metavar="SECONDS", help="write the page again and again until interrupted"
    )
    return parser


def write_report(runs: list[Path], output: Path, max_completions: int) -> None:
    """Writes the page, all or nothing.

    Raises:
        FileNotFoundError: If a directory holds no run.
        NotWrittenError: If there is no place for the page.
    """
    page = render_page([read_run(run, max_completions // len(runs)) for run in runs])
    part = output.with_name(output.name + ".part")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(valid_text(page), encoding="utf-8")
        os.replace(part, output)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise NotWrittenError(f"{output} could not be written ({error}). Name another place with --output.") from error


def main(args: list[str]) -> int:
    """Runs the command; 1 where a directory holds no run, or the page cannot be written."""
    options = build_parser().parse_args(args)
    output = options.output or options.runs[0] / "report.html"
    while True:
        try:
            write_report(options.runs, output, options.max_completions)
        except (FileNotFoundError, NotWrittenError) as error:
            print(error, file=sys.stderr)
            return 1
        print(f"{output} ({output.stat().st_size / 2**20:.1f} MiB)", flush=True)
        if options.every is None:
            return 0
        time.sleep(options.every)
