"""``python -m grpo_lightning {sft,dpo,rm}``: stages that train on what is written, under GRPO's command line.

Nothing is sampled, and no completions are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from lightning.pytorch.cli import LightningArgumentParser

from grpo_lightning.callbacks import HeldOutLine
from grpo_lightning.commands import STAGE_SUBCOMMANDS
from grpo_lightning.commands.cli import GRPOCLI, TRAINER_DEFAULTS
from grpo_lightning.commands.quiet import quiet
from grpo_lightning.modules import DPOModule, RewardModelModule, SFTModule


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


class SFTCLI(StageCLI):
    """A supervised warm start: ``sft --config sft.yaml``."""

    prog, module_class, converter = "grpo_lightning sft", SFTModule, "sft"
    defaults = stage_defaults("runs/sft")


class DPOCLI(StageCLI):
    """Training on preferences: ``dpo --config dpo.yaml``."""

    prog, module_class, converter = "grpo_lightning dpo", DPOModule, "dpo"
    defaults = stage_defaults("runs/dpo")


class RMCLI(StageCLI):
    """A reward model from preferences: ``rm --config rm.yaml``."""

    prog, module_class, converter = "grpo_lightning rm", RewardModelModule, "dpo"
    defaults = stage_defaults("runs/rm")


CLIS: dict[str, type[StageCLI]] = {"sft": SFTCLI, "dpo": DPOCLI, "rm": RMCLI}


def main(stage: str, arguments: Sequence[str]) -> int:
    """Runs ``fit`` of a stage, unless another subcommand is named first."""
    quiet()
    named = bool(arguments) and arguments[0] in STAGE_SUBCOMMANDS
    CLIS[stage](args=[*arguments] if named else ["fit", *arguments])
    return 0
