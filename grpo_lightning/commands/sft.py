"""``python -m grpo_lightning sft --config sft.yaml``: supervised warm start, under the same command line."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch.cli import LightningArgumentParser

from grpo_lightning.commands.cli import GRPOCLI, TRAINER_DEFAULTS
from grpo_lightning.commands.quiet import quiet
from grpo_lightning.modules.sft import SFTModule

SUBCOMMANDS = ("fit", "validate")
DEFAULTS = {name: value for name, value in TRAINER_DEFAULTS.items() if name != "callbacks"}  # those count completions
DEFAULTS["default_root_dir"] = "runs/sft"


class SFTCLI(GRPOCLI):
    """The command line of GRPO with SFTModule as model and the converter ``sft`` as default."""

    prog = "grpo_lightning sft"
    module_class = SFTModule
    defaults = DEFAULTS

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Completions of one's own are what GRPO's test and predict are for."""
        hidden = {"model", "train_dataloaders", "val_dataloaders", "datamodule"}
        return {"fit": hidden, "validate": {"model", "dataloaders", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """As for GRPO, with the converter of prompt and completion."""
        super().add_arguments_to_parser(parser)
        parser.set_defaults({"data.converter": "sft"})


def main(arguments: Sequence[str]) -> int:
    """Runs ``fit`` unless another subcommand is named first."""
    quiet()
    named = bool(arguments) and arguments[0] in SUBCOMMANDS
    SFTCLI(args=[*arguments] if named else ["fit", *arguments])
    return 0
