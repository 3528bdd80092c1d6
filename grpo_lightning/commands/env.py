"""``python -m grpo_lightning env play|check my.Env``: an environment by hand or with a model, and what is wrong with it."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from grpo_lightning.commands.arguments import CommandParser, temperature, whole
from grpo_lightning.commands.rewards import columns_of
from grpo_lightning.environments import (
    DEADLINE,
    OUTPUT_LIMIT,
    EnvironmentContractError,
    EnvironmentFault,
    open_episodes,
)

USAGE = """usage: grpo_lightning env play my.Env ...    plays an episode, from the keyboard or with --model
       grpo_lightning env check my.Env ...   tries what would go wrong in a run; status 1 where something would
Both take --help."""


def build_parser(action: str) -> CommandParser:
    """The options of ``play`` or ``check``."""
    parser = CommandParser(
        prog=f"grpo_lightning env {action}",
        description="Further options are columns of the row, as reset gets them: --seed 3, --board '[[0, 1], [1, 0]]' "
        "(numbers, lists and objects as JSON).",
        allow_abbrev=False,
    )
    optional = {"nargs": "?"} if action == "play" else {}
    parser.add_argument("environment", help="import path of the class, as in model.environment", **optional)  # type: ignore[arg-type]
    parser.add_argument("--init_args", type=json.loads, default={}, help="settings of the class, as JSON")
    parser.add_argument(
        "--deadline", type=float, default=DEADLINE, help=f"seconds for each call (default {DEADLINE:g})"
    )
    if action == "play":
        parser.add_argument("--tools", help="import paths of functions, with commas between them, as in model.tools")
        parser.add_argument("--output_limit", type=int, default=OUTPUT_LIMIT, help="characters of an answer")
        parser.add_argument("--prompt", default="", help="the row's prompt, before what reset says")
        parser.add_argument(
            "--max_turns", type=whole("number of turns", 1), default=20, help="of the policy (default 20)"
        )
        parser.add_argument(
            "--model", type=Path, help="plays in your place: a .ckpt file, a run or a Hugging Face directory"
        )
        parser.add_argument(
            "--max_tokens",
            type=whole("number of tokens", 1),
            default=256,
            help="tokens of a model's turn (default 256)",
        )
        parser.add_argument(
            "--temperature", type=temperature, default=0.0, help="0 (default) takes the likeliest token"
        )
        parser.add_argument("--model_seed", type=int, default=0, help="of sampled tokens (default 0)")
    return parser


def main(args: list[str]) -> int:
    """Runs the command; 1 where the environment is at fault, 2 for a mistake in the options."""
    if args[:1] not in (["play"], ["check"]):
        print(USAGE, file=sys.stdout if args[:1] in (["-h"], ["--help"]) else sys.stderr)
        return 0 if args[:1] in (["-h"], ["--help"]) else 2
    sys.path.insert(0, "")  # a class in a file of the working directory, as python -m finds it
    options, rest = build_parser(args[0]).parse_known_args(args[1:])
    try:
        row = row_of(rest)
        return play(options, row) if args[0] == "play" else check(options, row)
    except (ValueError, OSError) as error:
        print(f"env {args[0]}: {error}", file=sys.stderr)
        return 2


def row_of(arguments: list[str]) -> dict[str, Any]:
    """Columns from the command line; numbers and true, false, null are read as such.

    Example:
        >>> row_of(["--seed", "3", "--word", "crane", "--wide=true"])
        {'seed': 3, 'word': 'crane', 'wide': True}
    """
    return {name: _value(value) for name, value in columns_of(arguments).items()}


def _value(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _spec(options: argparse.Namespace) -> Any:
    if options.init_args and options.environment:
        return {"class_path": options.environment, "init_args": options.init_args}
    return options.environment


def check(options: argparse.Namespace, row: dict[str, Any]) -> int:
    """Prints what was found."""
    from grpo_lightning.environments.probe import probe

    found = asyncio.run(probe(_spec(options), row, options.deadline))
    for finding in found:
        print(f"{finding.level:<8}{finding.text}")
    errors = sum(finding.level == "error" for finding in found)
    warnings = sum(finding.level == "warning" for finding in found)
    print(f"{options.environment}: {errors} errors, {warnings} warnings")
    return int(errors > 0)


def play(options: argparse.Namespace, row: dict[str, Any]) -> int:
    """Plays one episode."""
    from grpo_lightning.commands.env_play import Keyboard, play_episode

    tools = [path.strip() for path in (options.tools or "").split(",") if path.strip()]
    factory = open_episodes(tools, _spec(options), options.deadline, options.output_limit)
    if factory is None:
        raise EnvironmentContractError("there is nothing to play: name an environment, or --tools.")
    if options.model is None:
        player: Any = Keyboard()
    else:
        from grpo_lightning.commands.env_model import load_player

        player = load_player(options.model, options.max_tokens, options.temperature, options.model_seed)
    prompt = [{"role": "user", "content": options.prompt}] if options.prompt else []

    async def run() -> int:
        try:
            return await play_episode(factory, row, prompt, player, options.max_turns)
        except EnvironmentFault as fault:
            print(f"fault: {fault}", file=sys.stderr)
            return 1
        finally:
            await factory.close()

    return asyncio.run(run())
