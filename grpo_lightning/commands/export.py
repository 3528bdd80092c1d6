"""``python -m grpo_lightning export CHECKPOINT OUTPUT``: Hugging Face format from any checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from grpo_lightning.callbacks.export import export
from grpo_lightning.commands.arguments import CommandParser
from grpo_lightning.commands.hub import push, write_card
from grpo_lightning.commands.quiet import quiet
from grpo_lightning.commands.saved_policy import config_of, find_checkpoint, load_checkpoint


def build_parser() -> CommandParser:
    """The command's options."""
    parser = CommandParser(
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
    parser.add_argument(
        "--push-to-hub",
        metavar="NAME",
        help="also upload it, as user/model; HF_TOKEN or `hf auth login` says who you are",
    )
    parser.add_argument("--private", action="store_true", help="with --push-to-hub: a new repository is private")
    return parser


def main(args: list[str]) -> int:
    """Runs the command; 1 where the checkpoint cannot be exported."""
    parser = build_parser()
    options = parser.parse_args(args)
    if options.private and not options.push_to_hub:
        parser.error("--private has no effect without --push-to-hub NAME.")
    quiet()
    try:
        checkpoint = find_checkpoint(options.checkpoint)
        config = config_of(checkpoint, options.config)
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
    written = path.with_name(path.name + "-adapter") if options.form == "adapter" else path
    if checkpoint.parent.name == "checkpoints":  # of a run, whose folder is searched for its metrics
        write_card(written, checkpoint.parent.parent, module.policy.name_or_path)
    print(written)
    return _pushed(written, options.push_to_hub, options.private) if options.push_to_hub else 0


def _pushed(written: Path, repo_id: str, private: bool) -> int:
    try:
        print(push(written, repo_id, private))
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        print(
            f"{written} was written and not uploaded to {repo_id}: {error}. Log in with `hf auth login`, then "
            f"`hf upload {repo_id} {written}` uploads it.",
            file=sys.stderr,
        )
        return 1
    return 0
