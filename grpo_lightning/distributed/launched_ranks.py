"""Whether a launcher (SLURM, torchrun, MPI, LSF) has started as many ranks as the Trainer is for."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Trainer


def tasks_fault(environment: Mapping[str, str]) -> str | None:
    """What is wrong with the tasks of a SLURM job, for Lightning cannot tell their nodes from ``--ntasks`` alone; None if nothing is.

    Example:
        >>> tasks_fault({"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}) is None
        True
    """
    tasks = int(environment.get("SLURM_NTASKS", "1"))
    if tasks == 1 or "SLURM_NTASKS_PER_NODE" in environment:
        return None
    return (
        f"SLURM_NTASKS={tasks}: the job asks for tasks by --ntasks, which does not say how many run on a node. Write --nodes "
        "and --ntasks-per-node into its script, one task for each device, and start the command with srun; one that is to "
        "run once starts with srun --ntasks=1 --ntasks-per-node=1."
    )


def check_launched(trainer: Trainer) -> None:
    """Refuses ranks that would train each by itself, or wait for others that nobody starts.

    Raises:
        ValueError: If the launcher's processes are not the devices times the nodes of the Trainer.
    """
    cluster = trainer._accelerator_connector.cluster_environment
    if isinstance(cluster, LightningEnvironment) or not cluster.creates_processes_externally:
        return
    started, expected = cluster.world_size(), trainer.num_devices * trainer.num_nodes
    if started != expected:
        name = type(cluster).__name__.removesuffix("Environment")
        raise ValueError(
            f"The launcher ({name}) has started {started} processes, but trainer.devices={trainer.num_devices} on "
            f"trainer.num_nodes={trainer.num_nodes} are {expected}. Set trainer.devices to the processes of a node and "
            "trainer.num_nodes to the nodes; on a GPU each process has to see all those of its node."
        )
