"""Reads what users bring: a flat YAML file, a command line that starts a run, or both."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from grpo_lightning.migration.axolotl import from_axolotl, is_axolotl
from grpo_lightning.migration.command_line import read_command, scalar, unquoted
from grpo_lightning.migration.foreign import refuse_foreign_command, refuse_foreign_file

ACCELERATE = ("compute_environment", "distributed_type", "deepspeed_config")
"""Keys of `accelerate config`'s file that no config of a training has."""

SCRIPTS = (".sh", ".bash")
"""How the names of files end that hold commands."""

PROGRAMS = (".py", ".ipynb")
"""How the names of files end that make a trainer in Python."""

OF_TRL = {
    **{"single_gpu": "NO", "multi_gpu": "MULTI_GPU", "fsdp1": "FSDP", "fsdp2": "FSDP"},
    **{"zero1": "DEEPSPEED", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"},
}
"""The types of the files that TRL 1.16 brings, by the names that `trl ... --accelerate_config` takes: 8 processes in bf16."""


def read_source(path: Path | None, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of a YAML file, overridden by those of a command line.

    Args:
        path: The file; None where the command line names it with --config, or is all there is.
        arguments: ``--key value`` as for `trl grpo`, or the whole command that starts a run: `accelerate launch
            --num_processes 8 grpo.py --config run.yaml --vllm-mode colocate`, also as one text.

    Raises:
        ValueError: If the file is missing, no flat mapping or another program's, or an argument has no name.
    """
    words = [word for argument in arguments for word in _words(argument, is_all=len(arguments) == 1)]
    refuse_foreign_command(words)
    command = read_command(words)
    named = command.pop("config", None)
    if path is not None and named is not None:
        raise ValueError(f"{path} and --config {named} are both given. Name one file.")
    file = path or (Path(str(named)) if named is not None else None)
    if file is not None and not file.is_file():
        raise ValueError(
            f"{file} {'is a folder' if file.is_dir() else 'does not exist'}. Give the path of a config of TRL."
        )
    launcher = _launcher(command)
    return launcher | (_read_yaml(file) if file else {}) | command


def _words(argument: str, is_all: bool) -> list[str]:
    """A command that was given as one quoted text, line breaks included, as its words."""
    is_command = is_all and len(argument.split()) > 1
    return shlex.split(argument.replace("\\\n", " "), comments=True) if is_command else [argument]


def _launcher(command: dict[str, Any]) -> dict[str, Any]:
    """What the file of `accelerate launch --config_file` or `trl ... --accelerate_config` says; ``command`` loses that option."""
    named = [command.pop(option, None) for option in ("config_file", "accelerate_config")]
    path = str(named[0] or named[1])
    if named == [None, None]:
        return {}
    if not Path(path).is_file() and path not in OF_TRL:
        return {"accelerate_config": path}
    if Path(path).is_file():
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    else:
        content = {"distributed_type": OF_TRL[path], "num_processes": 8, "mixed_precision": "bf16"}
    taken = {key: content[key] for key in ("num_processes", "num_machines", "mixed_precision") if key in content}
    kind = str(content.get("distributed_type", "")).lower()
    if kind in ("no", "false"):  # accelerate starts one process then; YAML reads NO without quotes as false
        taken["num_processes"] = 1
    return taken | {f"use_{name}": True for name in ("deepspeed", "fsdp") if name in kind}


def _refuse_script(path: Path, text: str) -> None:
    """Raises ValueError with what can be taken from a script of another trainer, or with how a command is given."""
    try:
        words = shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError:  # quotes that a shell would read otherwise
        words = text.split()
    refuse_foreign_command(words, str(path))
    raise ValueError(
        f"{path} is a script. Give the command in it that starts the run, as one text in quotes: migrate 'accelerate launch ...'."
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8. Give the path of a config of TRL.") from error
    if path.suffix in SCRIPTS:
        _refuse_script(path, text)
    if path.suffix in PROGRAMS:
        raise ValueError(
            f"{path} is a program, which migrate does not run. Have it write its settings, behind its GRPOConfig: "
            "yaml.safe_dump(args.to_dict(), open('trl.yaml', 'w')), and give what it hands to the trainer as options: migrate "
            "trl.yaml --model_name_or_path MODEL --dataset_name DATA --reward_funcs my.reward; for a peft_config, "
            "--use_peft true --lora_r 16 --lora_alpha 32 --lora_target_modules q_proj v_proj."
        )
    content = yaml.safe_load(text)
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} {'is empty' if content is None else f'holds {type(content).__name__}'}, not `key: value` lines. Give a TRL or a flat YAML config."
        )
    refuse_foreign_file(str(path), content)
    ours = {"model", "trainer", "data"} & {key for key, value in content.items() if isinstance(value, dict)}
    if ours:
        raise ValueError(f"{path} has the sections {', '.join(sorted(ours))}: it is a config of this package already.")
    launcher = [key for key in ACCELERATE if key in content]
    if launcher:
        raise ValueError(
            f"{path} is a config of `accelerate launch` ({', '.join(launcher)}): it says how processes start, not what "
            "they train. Give TRL's config of the run. In place of this file, set trainer.devices, trainer.num_nodes and, "
            "where it says DeepSpeed or FSDP, trainer.strategy: fsdp2."
        )
    content = {str(key): scalar(unquoted(str(key), value)) for key, value in content.items()}
    return from_axolotl(content) if is_axolotl(content) else content
