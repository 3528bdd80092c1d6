"""What a checkpoint notes of the prompts its run drew from, and what a resumed run says where they are others now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from grpo_lightning.datamodules.prompts.column_checksums import changed_columns
from grpo_lightning.datamodules.prompts.dataset import PromptDataset
from grpo_lightning.datamodules.prompts.mixture import MixedPrompts


def noted(prompts: PromptDataset | MixedPrompts) -> dict[str, Any]:
    """Checksums of the prompts' tokens, in order, and of each column's values."""
    return {"checksum": prompts.checksum, "columns": prompts.column_checksums}


def say_what_changed(note: Mapping[str, Any], prompts: PromptDataset | MixedPrompts, epoch: int) -> None:
    """Warns where prompts are others than those of the checkpoint's run; a note of an earlier version does not tell.

    Args:
        note: Of the checkpoint, as ``noted`` made it.
        prompts: That the run draws from now.
        epoch: In which it goes on.
    """
    if note.get("checksum", prompts.checksum) != prompts.checksum:
        rank_zero_warn(
            f"The prompts of {prompts.name} have other tokens, or another order, than those that the checkpoint's run drew "
            f"from. Epoch {epoch} goes on with them: some may come twice in it, others not at all."
        )
        return
    now = prompts.column_checksums
    changed = changed_columns(note.get("columns", now), now)
    if changed:
        rank_zero_warn(
            f"{prompts.name} has the prompts that the checkpoint's run drew from, and other values in {', '.join(changed)}. "
            "What is drawn from here on has the new ones."
        )


def say_it_ends(name: str, row: int, epoch: int) -> None:
    """Warns that a stream ends before the row that the checkpoint's run went on from."""
    rank_zero_warn(
        f"{name} ends before row {row}, which the checkpoint's run had read: it has fewer rows now. Epoch {epoch} is over."
    )
