"""Runs as torchrun and SLURM start them: the documented launchers, on this machine's CPU."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_runs import CommandRun
from ending_ranks import SECONDS
from ports import free_port
from two_rank_runs import environment, trained, write_run

REWARDS = """
import os, time

def digits(completions, trainer_state, **columns):
    '''Share of digits; where SLOW names a rank, it ends its second step once both have been sent their signals.'''
    if trainer_state.global_step == 1 and os.environ.get("SLOW"):
        rank = os.environ["SLURM_PROCID"]
        open(f"reached{rank}", "w").close()
        while rank == os.environ["SLOW"] and not os.path.exists("signalled"):
            time.sleep(0.02)
    return [sum(c.isdigit() for c in text) / max(1, len(text)) for text in completions]
"""
SCONTROL = '#!/bin/sh\necho "$@" >> requeued\n'


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A config for two ranks, its reward, and a stand-in for the command that requeues a job."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(SCONTROL)
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}}
    sections = {
        "trainer": {"max_steps": 3},
        "model": {"optimizer": optimizer},
        "checkpoint": {"every_n_train_steps": 3},
    }
    write_run(tmp_path, tiny_model_dir, REWARDS, sections)
    return tmp_path


def variables(folder: Path, **more: str) -> dict[str, str]:
    return environment(folder, PATH=os.pathsep.join([str(folder / "bin"), os.environ["PATH"]]), **more)


def ours(run: str) -> list[str]:
    sizes = ["--trainer.num_nodes", "1", "--trainer.devices", "2", "--trainer.default_root_dir", run]
    return ["-m", "grpo_lightning", "fit", "--config", "run.yaml", *sizes]


def slurm_variables() -> Iterator[dict[str, str]]:
    """Of each process that ``srun`` starts for a job of one node with two tasks."""
    job = {
        "SLURM_JOB_ID": str(10000 + free_port() % 10000),
        "SLURM_JOB_NAME": "grpo",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "localhost",
        "MASTER_PORT": str(free_port()),
    }
    for rank in range(2):
        yield job | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}


def slurm_ranks(folder: Path, run: str, **more: str) -> list[subprocess.Popen[str]]:
    """The processes."""
    return [
        subprocess.Popen(
            [sys.executable, *ours(run)],
            cwd=folder,
            env=variables(folder, **of_rank, **more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for of_rank in slurm_variables()
    ]


def signalled(ranks: list[subprocess.Popen[str]], folder: Path, number: int) -> list[str]:
    """What each rank wrote, all having been sent a signal in the second step, one of them inside a collective."""
    while not all((folder / f"reached{rank}").exists() for rank in range(2)):
        assert all(rank.poll() is None for rank in ranks), [rank.communicate()[0] for rank in ranks]
        time.sleep(0.05)
    time.sleep(1)
    for rank in ranks:
        rank.send_signal(number)
    (folder / "signalled").touch()
    try:
        return [rank.communicate(timeout=SECONDS)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


@pytest.mark.slow
def test_torchrun_starts_ranks_and_slurm_requeues_them_between_two_steps(folder):
    launcher = ["-m", "torch.distributed.run", "--nnodes", "1", "--nproc_per_node", "2", "--node_rank", "0"]
    address = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    command = [sys.executable, *launcher, *address, *ours("torchrun")]
    done = subprocess.run(command, cwd=folder, env=variables(folder), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((folder / "torchrun" / "system.json").read_text())["ranks"] == 2

    ranks = slurm_ranks(folder, "slurm", SLOW="0")
    outputs = signalled(ranks, folder, signal.SIGUSR1)
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    assert len((folder / "requeued").read_text().splitlines()) == 1  # by the first rank
    saved = torch.load(folder / "slurm" / "hpc_ckpt_1.ckpt", weights_only=False)
    assert (saved["steps_done"], saved["global_step"]) == (2, 2)

    expected = trained(folder / "torchrun")
    torch.testing.assert_close(trained(folder / "slurm"), expected, rtol=0, atol=0)
    (folder / "slurm" / "checkpoints" / "last.ckpt").unlink()
    again = [CommandRun(folder, *ours("slurm")[2:], **of_rank) for of_rank in slurm_variables()]
    found = [rank.finish() for rank in again]  # Lightning finds the checkpoint by itself
    assert [status for status, _ in found] == [0, 0], found
    torch.testing.assert_close(trained(folder / "slurm"), expected, rtol=0, atol=0)


@pytest.mark.slow
def test_a_scheduler_that_ends_a_job_ends_every_rank_after_the_step(folder):
    ranks = slurm_ranks(folder, "ended", SLOW="1")
    outputs = signalled(ranks, folder, signal.SIGTERM)
    assert "Stopped by SIGTERM, after a step. Continue with --ckpt_path last." in outputs[0]
    saved = torch.load(folder / "ended" / "checkpoints" / "last.ckpt", weights_only=False)
    assert saved["steps_done"] == 2
    assert not any("Traceback" in output for output in outputs)
    assert [rank.returncode for rank in ranks] == [143, 143]  # 128 + SIGTERM: the job has not done what it was asked
