"""``python -m grpo_lightning sft --config sft.yaml``: supervised warm start, under the same command line."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_lightning.commands.stage_cli import StageCLI, run_stage, stage_defaults
from grpo_lightning.modules.sft import SFTModule


class SFTCLI(StageCLI):
    """``SFTModule`` as model, the converter ``sft`` as default."""

    prog = "grpo_lightning sft"
    module_class = SFTModule
    defaults = stage_defaults("runs/sft")
    converter = "sft"


def main(arguments: Sequence[str]) -> int:
    """Runs ``fit`` unless another subcommand is named first."""
    return run_stage(SFTCLI, arguments)
