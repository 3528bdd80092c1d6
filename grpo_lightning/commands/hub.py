"""An exported model on the Hugging Face hub."""

from __future__ import annotations

import subprocess
from pathlib import Path

from huggingface_hub import HfApi

from grpo_lightning.report.model_card import DRAWING, drawing, model_card
from grpo_lightning.report.run import read_run


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
