"""Lightning's launcher of the other ranks of a node, for ranks that were started with the command."""

from __future__ import annotations

import os
import sys

from lightning.pytorch.strategies import Strategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from grpo_lightning.distributed.early_ranks import are_waiting, dismiss_early, run_rank


class EarlyRankLauncher(_SubprocessScriptLauncher):
    """Lightning's but for where the processes come from; it looks after them as before."""

    def _call_children_scripts(self) -> None:
        self._check_can_spawn_children()
        cluster = self.cluster_environment
        os.environ["MASTER_ADDR"] = cluster.main_address
        os.environ["MASTER_PORT"] = str(cluster.main_port)
        os.environ["NODE_RANK"] = str(cluster.node_rank())
        os.environ["LOCAL_RANK"] = str(cluster.local_rank())
        os.environ["WORLD_SIZE"] = str(self.num_processes * self.num_nodes)
        self.procs = [
            run_rank(local_rank, sys.argv[1:], {**os.environ, "LOCAL_RANK": str(local_rank)})
            for local_rank in range(1, self.num_processes)
        ]
        dismiss_early()


def use_early_ranks(strategy: Strategy) -> None:
    """Lets a strategy take the ranks that are waiting; they end where it starts none, or in a way of its own.

    Args:
        strategy: Of the Trainer that the command runs.
    """
    launcher = strategy.launcher
    if are_waiting() and type(launcher) is _SubprocessScriptLauncher:
        strategy._launcher = EarlyRankLauncher(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)
    else:
        dismiss_early()
