"""Tests of the supervised child processes."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from grpo_lightning.rewards.runtime.worker_pool import WorkerError, WorkerPool

CHILD = """
import os, signal, sys, time
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
connection.send("ready")
while True:
    try:
        request = connection.recv()
    except EOFError:
        break
    if request == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    if request == "die":
        os._exit(3)
    connection.send((request, os.getpid()))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "child.py"
    path.write_text(textwrap.dedent(CHILD))
    return path


def test_replies_come_in_the_order_of_the_requests(script: Path) -> None:
    pool = WorkerPool(script, size=2)
    assert [reply[0] for reply in pool.map(list(range(20)))] == list(range(20))
    assert pool.map([]) == []
    pool.close()


def test_a_child_that_hangs_is_killed_and_replaced_while_the_other_works_on(script: Path) -> None:
    pool = WorkerPool(script, size=2, time_limit=0.2)
    replies = pool.map(["hang", *range(10), "hang", 10])
    assert isinstance(replies[0], WorkerError) and "killed after 0.2 s" in str(replies[0])
    assert isinstance(replies[11], WorkerError)
    assert [reply[0] for reply in replies[1:11]] == list(range(10))
    assert replies[12][0] == 10
    pool.close()


def test_a_child_that_dies_costs_its_own_request_only(script: Path) -> None:
    pool = WorkerPool(script, size=1)
    replies = pool.map([1, "die", 2])
    assert replies[0][0] == 1 and replies[2][0] == 2
    assert isinstance(replies[1], WorkerError) and "died" in str(replies[1])
    assert replies[0][1] != replies[2][1]  # another process
    pool.close()


def test_children_are_kept_between_calls_and_started_again_after_close(script: Path) -> None:
    pool = WorkerPool(script, size=1)
    first, second = pool.map([1])[0][1], pool.map([1])[0][1]
    pool.close()
    assert first == second != pool.map([1])[0][1]
    pool.close()


def test_a_script_that_cannot_start_is_an_error_not_a_wait(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit(7)")
    with pytest.raises(RuntimeError, match=r"broken\.py did not start: exit code 7"):
        WorkerPool(broken).map([1])
