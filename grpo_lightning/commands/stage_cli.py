"""The command line of GRPO for stages that train on what is written: nothing is sampled, no completions are counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from lightning.pytorch.cli import LightningArgumentParser

from grpo_lightning.callbacks import HeldOutLine
from grpo_lightning.commands import STAGE_SUBCOMMANDS
from grpo_lightning.commands.cli import GRPOCLI, TRAINER_DEFAULTS
from grpo_lightning.commands.quiet import quiet


def stage_defaults(root: str) -> dict[str, Any]:
    """Of the Trainer, with the folder of the run; without the callbacks that count completions."""
    return TRAINER_DEFAULTS | {"default_root_dir": root, "callbacks": [HeldOutLine()]}


class StageCLI(GRPOCLI):
    """The command line of GRPO with another module as model and another converter as default."""

    converter: ClassVar[str]

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Completions of one's own are what GRPO's test and predict are for."""
        hidden = {"model", "train_dataloaders", "val_dataloaders", "datamodule"}
        return {"fit": hidden, "validate": {"model", "dataloaders", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """As for GRPO, with the converter of the stage."""
        super().add_arguments_to_parser(parser)
        parser.set_defaults({"data.converter": self.converter})


def run_stage(cli: type[StageCLI], arguments: Sequence[str]) -> int:
    """Runs ``fit`` unless another subcommand is named first."""
    quiet()
    named = bool(arguments) and arguments[0] in STAGE_SUBCOMMANDS
    cli(args=[*arguments] if named else ["fit", *arguments])
    return 0
