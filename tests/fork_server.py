"""One process imports everything once; tests fork whole runs and ranks from it, in a fraction of a second."""

from __future__ import annotations

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "grpo_lightning.commands.cli",
        "lightning.pytorch.strategies",
        "torch.distributed.fsdp",
        "toy_models",
        *("grpo_lightning.trackers.kinds", "torch.utils.tensorboard"),  # of the first step that is logged
        *("omegaconf", "torch.profiler._cupti_monitor", "numpy.ctypeslib", "torch.utils.serialization"),
        "fork_server_heap",
    ]
)
