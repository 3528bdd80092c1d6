"""``python -m grpo_lightning rm --config rm.yaml``: a reward model from preferences, under the same command line."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_lightning.commands.stage_cli import StageCLI, run_stage, stage_defaults
from grpo_lightning.modules.reward_model import RewardModelModule


class RMCLI(StageCLI):
    """``RewardModelModule`` as model, the converter ``dpo`` as default."""

    prog = "grpo_lightning rm"
    module_class = RewardModelModule
    defaults = stage_defaults("runs/rm")
    converter = "dpo"


def main(arguments: Sequence[str]) -> int:
    """Runs ``fit`` unless another subcommand is named first."""
    return run_stage(RMCLI, arguments)
