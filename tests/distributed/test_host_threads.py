"""Threads of OpenMP in a process that computes on a GPU."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import torch
torch.set_num_threads({before})
from grpo_lightning.distributed.accelerators import limit_host_threads
limit_host_threads(torch.device("{device}"))
print(torch.get_num_threads())
"""


@pytest.mark.parametrize(
    ("before", "device", "given", "after"),
    [(16, "cuda", None, 4), (2, "cuda", None, 2), (16, "cpu", None, 16), (16, "cuda", "16", 16)],
)
def test_few_threads_are_left_beside_a_gpu_unless_somebody_said_how_many(
    before: int, device: str, given: str | None, after: int
):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {} if given is None else {"OMP_NUM_THREADS": given}
    script = SCRIPT.format(before=before, device=device)
    ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert int(ran.stdout) == after
