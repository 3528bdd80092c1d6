"""``python -m grpo_lightning export CHECKPOINT OUTPUT``: Hugging Face format from any checkpoint."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from grpo_lightning.callbacks.export import export
from grpo_lightning.commands.saved_policy import find_checkpoint, find_config, load_checkpoint, read_config


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="grpo_lightning export",
        description="Writes the policy of a checkpoint as a directory that transformers and vLLM load.",
    )
    parser.add_argument("checkpoint", type=Path, help="a .ckpt file, or a run directory for its last one")
    parser.add_argument("output", type=Path, help="the directory to write")
    parser.add_argument("--config", type=Path, help="the run's config; by default the config.yaml of its last launch")
    parser.add_argument(
        "--form",
        choices=("merged", "adapter"),
        default="merged",
        help="merged (default): the whole model, adapters added in; adapter: the adapter alone, with its base's name",
    )
    parser.add_argument("--accelerator", default="cpu", help="cpu (default) or gpu")
    return parser


def main(args: list[str]) -> int:
    """Runs the command; 1 where the checkpoint cannot be exported."""
    options = build_parser().parse_args(args)
    try:
        checkpoint = find_checkpoint(options.checkpoint)
        config = read_config(options.config or find_config(checkpoint))
        module = load_checkpoint(checkpoint, config, options.accelerator)
        if options.form == "adapter" and not module.policy.settings.has_adapters:
            raise ValueError(f"{checkpoint} has no adapter: its run had model.finetuning_type=full. Use --form merged.")
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    path = options.output
    if options.form == "adapter":  # export() writes adapters to PATH-adapter
        path = path.with_name(path.name.removesuffix("-adapter"))
    export(module, path, forms=[options.form])
    print(path.with_name(path.name + "-adapter") if options.form == "adapter" else path)
    return 0
