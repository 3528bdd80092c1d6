"""A sample of the fault matrix; all of it is `python tests/fault_matrix.py`."""

from __future__ import annotations

import fault_matrix
import pytest

SAMPLE = "SIGKILL=1,SIGTERM=1,SIGINT=1,file in the way=1,disk=1,reward=1,checkpoint=24"


def test_a_sample_of_faults_costs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    status = fault_matrix.main(["--only", SAMPLE])
    output = capsys.readouterr().out
    assert status == 0, output
    assert output.splitlines()[-1].split() == ["all", "30", "30", "0"]


def test_the_whole_matrix_is_of_a_hundred_faults_most_of_them_in_runs() -> None:
    assert sum(fault_matrix.COUNTS.values()) >= 100
    assert fault_matrix.COUNTS["checkpoint"] < sum(fault_matrix.COUNTS.values()) / 4
    assert fault_matrix.COUNTS.keys() == fault_matrix.ROWS.keys()
