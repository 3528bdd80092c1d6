"""``python -m grpo_lightning export CHECKPOINT OUTPUT``: Hugging Face format from any checkpoint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from grpo_lightning.callbacks.export import ExportNotWrittenError, check_free, export
from grpo_lightning.commands.arguments import CommandParser
from grpo_lightning.commands.quiet import quiet
from grpo_lightning.commands.saved_policy import config_of, find_checkpoint, load_checkpoint
from grpo_lightning.report.model_card import DRAWING, drawing, model_card
from grpo_lightning.report.run import read_run


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
    written = options.output
    quiet()
    try:
        check_free(written)
        checkpoint = find_checkpoint(options.checkpoint)
        config = config_of(checkpoint, options.config)
        module = load_checkpoint(checkpoint, config, options.accelerator)
        if options.form == "adapter" and not module.policy.settings.has_adapters:
            raise ValueError(f"{checkpoint} has no adapter: its run had model.finetuning_type=full. Use --form merged.")
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    try:
        export(module, written, forms=[options.form], adapter_path=written)
    except ExportNotWrittenError as error:
        print(error, file=sys.stderr)
        return 1
    if checkpoint.parent.name == "checkpoints":  # of a run, whose folder is searched for its metrics
        try:
            write_card(written, checkpoint.parent.parent, module.policy.name_or_path)
        except OSError as error:
            print(f"{written} was written without its whole model card ({error}). Free disk space.", file=sys.stderr)
            return 1
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


def write_card(export: Path, run: Path, base_model: str) -> None:
    """Puts README.md and its drawing into an export; nothing where the run left neither metrics nor completions."""
    try:
        read = read_run(run, max_completions=1)
    except FileNotFoundError:
        return
    (export / "README.md").write_text(model_card(read, base_model, commit_of(run)), encoding="utf-8")
    if picture := drawing(read):
        (export / DRAWING).write_text(picture, encoding="utf-8")


def commit_of(folder: Path) -> str:
    """The commit that is checked out where the folder lies; empty outside of a repository."""
    command = ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def push(export: Path, repo_id: str, private: bool = False) -> str:
    """Uploads a directory in one commit, the repository made where it is missing; returns its address.

    The hub's address and token are those of ``huggingface_hub``: HF_ENDPOINT, HF_TOKEN, or ``hf auth login``.
    """
    api = HfApi()
    address = api.create_repo(repo_id, private=private, exist_ok=True)
    api.upload_folder(repo_id=repo_id, folder_path=export, commit_message="Model trained with grpo_lightning")
    return str(address)
