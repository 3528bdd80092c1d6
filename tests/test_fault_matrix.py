"""A sample of the fault matrix; all of it is `python tests/fault_matrix.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_sample_of_faults_costs_nothing():
    command = [sys.executable, str(Path(__file__).parent / "fault_matrix.py"), "--kills=1", "--signals=2", "--disks=1"]
    done = subprocess.run([*command, "--files=30"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].split() == ["all", "34", "34", "0"]
