"""``python -m grpo_lightning dpo --config dpo.yaml``: training on preferences, under the same command line."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_lightning.commands.stage_cli import StageCLI, run_stage, stage_defaults
from grpo_lightning.modules.dpo import DPOModule


class DPOCLI(StageCLI):
    """``DPOModule`` as model, the converter ``dpo`` as default."""

    prog = "grpo_lightning dpo"
    module_class = DPOModule
    defaults = stage_defaults("runs/dpo")
    converter = "dpo"


def main(arguments: Sequence[str]) -> int:
    """Runs ``fit`` unless another subcommand is named first."""
    return run_stage(DPOCLI, arguments)
