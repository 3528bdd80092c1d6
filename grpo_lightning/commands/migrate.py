"""``python -m grpo_lightning migrate old.yaml``: a config of TRL or of GRPOArguments -> ours."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import yaml

from grpo_lightning.commands.arguments import CommandParser, whole
from grpo_lightning.migration import (
    DISTILLATION,
    SELF_DISTILLATION,
    STAGES,
    UNKNOWN,
    Migration,
    migrate,
    migrate_distillation,
    migrate_self_distillation,
    migrate_stage,
    read_source,
)

FILES = (".yaml", ".yml", ".json")


def build_parser() -> CommandParser:
    """The command's own options; everything else is read as TRL's."""
    parser = CommandParser(
        prog="grpo_lightning migrate",
        usage="%(prog)s [OLD_YAML | COMMAND] [--trainer dpo] [--output NEW_YAML] [--devices N] [--total_steps N] [--trl_version V] "
        "[--KEY VALUE ...]",
        description="Writes a config of this package from a config of TRL's GRPOConfig (YAML, or the command that starts "
        "the run: `trl grpo ...`, `accelerate launch ... grpo.py --config ...`) or from the YAML of GRPOArguments, and "
        "lists what has no counterpart. Further options are taken as settings of theirs and win over the file: "
        "--beta 0.04 --reward_funcs my.module.reward.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--trainer",
        choices=("grpo", *STAGES, *DISTILLATION, *SELF_DISTILLATION),
        default="grpo",
        help="whose config it is: GRPOConfig, DPOConfig, GKDConfig, ...",
    )
    parser.add_argument("--output", type=Path, help="the new config; by default it is printed")
    parser.add_argument(
        "--devices",
        type=whole("number of devices", 1),
        help="devices the run was made for (default: num_processes, else 1)",
    )
    parser.add_argument(
        "--total_steps", type=whole("number of steps", 1), help="optimizer steps, for shares of a run without max_steps"
    )
    parser.add_argument("--trl_version", help="whose defaults hold for what is left out, such as 0.17")
    return parser


def summary(result: Migration, needs_rewards: bool = True) -> str:
    """What went where, for the terminal."""
    lines = [f"{len(result.mapped.keys() & result.given)} of {len(result.given)} settings have a place here."]
    if result.lost():
        lines.append("Without a counterpart:")
        lines += [f"  {key}: {reason}" for key, reason in result.lost().items()]
    lines += result.notes
    if result.off():
        lines.append(f"Without a counterpart, and off: {', '.join(result.off())}.")
    needed = ["model.model_name_or_path", *(["model.rewards"] if needs_rewards else []), "data.dataset"]
    missing = [key for key in needed if key not in result.config]
    if missing:
        lines.append(f"Still to be set, since the config does not say: {', '.join(missing)}.")
    return "\n".join(lines)


def other_trainers(result: Migration) -> list[str]:
    """Of a config that was read as GRPOConfig's: values of --trainer that know most of its keys that are unknown there."""
    unknown = {key for key, reason in result.lost().items() if reason == UNKNOWN}
    known = {name: len(unknown & {*each.same, *each.refused, *each.implied}) for name, each in STAGES.items()}
    most = max(known.values())
    return [name for name, count in known.items() if count == most > 0]


def main(args: list[str]) -> int:
    """Runs the command; 1 where the source cannot be read."""
    options, theirs = build_parser().parse_known_args(args)
    source = Path(theirs.pop(0)) if theirs and (_is_file(theirs[0]) or _is_folder(theirs)) else None
    try:
        if source is None and not theirs:
            raise ValueError("Give a YAML file, settings such as --beta 0.04, or the command that starts the run.")
        settings, counts = read_source(source, theirs), (options.devices, options.total_steps)
        if options.trainer == "grpo":
            result = migrate(settings, *counts, options.trl_version)
        elif options.trainer in DISTILLATION:
            result = migrate_distillation(options.trainer, settings, *counts)
        elif options.trainer in SELF_DISTILLATION:
            result = migrate_self_distillation(options.trainer, settings, *counts)
        else:
            result = migrate_stage(options.trainer, settings, *counts)
        if not result.given:
            raise ValueError(
                f"No settings were found in {source or ' '.join(theirs)}. Give TRL's YAML config, or a command with settings in it: "
                "migrate 'accelerate launch grpo.py --config trl.yaml --beta 0.04'. What a script sets in Python is not read: "
                "have it write them, behind its GRPOConfig: yaml.safe_dump(args.to_dict(), open('trl.yaml', 'w'))."
            )
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except yaml.MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}" if error.problem_mark else "somewhere"
        print(f"{source} is no valid YAML: {place}: {error.problem}.", file=sys.stderr)
        return 1
    text = result.to_yaml(source.name if source else "the command line")
    if options.output:
        try:
            options.output.write_text(text, encoding="utf-8")
        except OSError as error:
            print(f"--output {options.output} cannot be written: {error.strerror}.", file=sys.stderr)
            return 1
    else:
        print(text)
    print(summary(result, options.trainer == "grpo"), file=sys.stderr)
    if options.trainer == "grpo" and (others := other_trainers(result)):
        print(
            f"This was read as a GRPOConfig. For another trainer's give --trainer {' or '.join(others)}.",
            file=sys.stderr,
        )
    return 0


def _is_file(word: str) -> bool:
    """Whether the first word names a config rather than a program."""
    # Path.is_file raises on a whole command in quotes, which is longer than a file's name may be.
    return not word.startswith("-") and ((word.endswith(FILES) and " " not in word) or os.path.isfile(word))


def _is_folder(words: list[str]) -> bool:
    """Whether a folder is given in place of a config; `trl grpo` beside a clone of TRL is a command all the same."""
    return os.path.isdir(words[0]) and (len(words) == 1 or words[1].startswith("--"))
