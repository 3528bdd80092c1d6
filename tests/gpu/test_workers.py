"""What `pytest -m gpu` shows of the machine's GPUs to the processes that run the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TEST = "import os, pytest\n\n@pytest.mark.gpu\ndef test(): print('GPUs:', os.environ.get('CUDA_VISIBLE_DEVICES'))\n"


@pytest.mark.slow
@pytest.mark.parametrize(("options", "seen"), [(["-m", "gpu", "-n", "1"], "None"), (["-n", "1"], "")])
def test_workers_see_the_gpus_where_tests_of_gpus_are_asked_for(options, seen, tmp_path):
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "test_seen.py").write_text(TEST)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA", "PYTEST"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-rP", "-p", "no:cacheprovider", *options, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert f"GPUs: {seen}\n" in done.stdout, done.stdout + done.stderr
