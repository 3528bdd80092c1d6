"""Tests of the supervised child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from grpo_lightning.concurrency.worker_pool import UnsentReplyError, WorkerError, WorkerPool

CHILD = """
import os, signal, sys, time

def answer(request):
    if request == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    if isinstance(request, tuple) and request[0] == "start":  # a child, and one that is in no group of ours any more
        import subprocess
        code = "import time; time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", code])
        grandchild = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        with open(request[1], "w") as file:
            file.write(f"{child.pid} {grandchild.pid}")
        request = request[2]
    if isinstance(request, tuple) and request[0] == "start alone":  # what nothing but its parent connects with us
        import subprocess
        with open(request[1], "w") as file:
            code = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], env={}, start_new_session=True); print(p.pid, flush=True); time.sleep(600)"
            child = subprocess.Popen([sys.executable, "-c", code], env={}, start_new_session=True, stdout=subprocess.PIPE)
            file.write(f"{child.pid} {int(child.stdout.readline())}")
        request = request[2]
    if request == "hang":
        time.sleep(600)
    if request == "die":
        os._exit(3)
    return request, os.getpid()
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def ends(pid: int) -> bool:
    for _ in range(600):
        if not is_running(pid):
            return True
        time.sleep(0.05)
    return False


def replies_of(pool: WorkerPool, requests: list[Any]) -> list[Any]:
    """Asked side by side; the error in place of a reply that never came."""

    def reply(request: Any) -> Any:
        try:
            return pool.call(request)
        except WorkerError as error:
            return error

    with ThreadPoolExecutor(pool.size) as threads:
        return list(threads.map(reply, requests))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "child.py"
    path.write_text(textwrap.dedent(CHILD))
    return path


def test_replies_come_in_the_order_of_the_requests(script: Path) -> None:
    pool = WorkerPool(script, size=2)
    assert [reply[0] for reply in replies_of(pool, list(range(20)))] == list(range(20))
    pool.close()


def test_a_child_that_hangs_is_killed_and_replaced_while_the_other_works_on(script: Path) -> None:
    pool = WorkerPool(script, size=2, time_limit=0.2)
    replies = replies_of(pool, ["hang", *range(10), "hang", 10])
    assert isinstance(replies[0], WorkerError) and "killed after 0.2 s" in str(replies[0])
    assert isinstance(replies[11], WorkerError) and "killed after 0.2 s" in str(replies[11])
    assert [reply[0] for reply in replies[1:11]] == list(range(10))
    assert replies[12][0] == 10
    pool.close()


def test_a_child_that_dies_costs_its_own_request_only(script: Path) -> None:
    pool = WorkerPool(script, size=1)
    replies = replies_of(pool, [1, "die", 2])
    assert replies[0][0] == 1 and replies[2][0] == 2
    assert isinstance(replies[1], WorkerError) and "died" in str(replies[1])
    assert replies[0][1] != replies[2][1]  # another process
    pool.close()


def test_children_are_kept_between_calls_and_started_again_after_close(script: Path) -> None:
    pool = WorkerPool(script, size=1)
    first, second = replies_of(pool, [1])[0][1], replies_of(pool, [1])[0][1]
    pool.close()
    assert first == second != replies_of(pool, [1])[0][1]
    pool.close()


@pytest.mark.parametrize("end", ["hang", "die", "close", "die idle"])
def test_what_a_grader_has_started_ends_with_it(script: Path, tmp_path: Path, end: str) -> None:
    pool, pids = WorkerPool(script, size=1), tmp_path / "pids"
    (first,) = replies_of(pool, [("start", str(pids), "started")])
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 2 and all(is_running(pid) for pid in started)
    if end in ("hang", "die"):
        pool.time_limit = 0.2 if end == "hang" else pool.time_limit
        (error,) = replies_of(pool, [end])
        assert isinstance(error, WorkerError) and ("killed after 0.2 s" if end == "hang" else "died") in str(error)
    elif end == "close":
        pool.close()
    else:
        os.kill(first[1], signal.SIGKILL)
        pool._all[0].process.wait()
        assert replies_of(pool, [1])[0][0] == 1
    assert all(ends(pid) for pid in started)
    pool.close()


@pytest.mark.parametrize("end", ["hang", "close"])
def test_children_in_an_environment_and_session_of_their_own_end_with_it_too(
    script: Path, tmp_path: Path, end: str
) -> None:
    pool, pids = WorkerPool(script, size=1), tmp_path / "pids"
    assert replies_of(pool, [("start alone", str(pids), "started")])[0][0] == "started"
    started = [int(pid) for pid in pids.read_text().split()]
    if end == "hang":
        pool.time_limit = 0.2
        (error,) = replies_of(pool, ["hang"])
        assert isinstance(error, WorkerError) and "killed after 0.2 s" in str(error)
    pool.close()
    assert len(started) == 2 and all(ends(pid) for pid in started)


def test_a_child_that_was_dropped_and_is_given_back_makes_room_for_one_other(script: Path) -> None:
    pool = WorkerPool(script, size=1)
    first = pool.take()
    with pytest.raises(AttributeError, match="pickle"):
        pool.ask(first, lambda: None)
    pool.give_back(first)
    assert pool.take() is not first
    assert not pool._free.acquire(blocking=False)
    pool.close()


def test_a_reply_that_cannot_be_sent_says_so_and_its_child_goes_on(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(
        "import os\ndef answer(request):\n    return (lambda: 0) if request else ('unsent', os.getpid())\n"
    )
    pool = WorkerPool(script, size=1)
    kind, child = pool.call(0)
    with pytest.raises(UnsentReplyError, match="pickle"):
        pool.call(1)
    assert pool.call(0) == (kind, child) == ("unsent", child)
    pool.close()


@pytest.mark.parametrize("ended_by", ["nobody", "give_back", "drop"])
def test_a_child_that_was_taken_when_its_pool_closed_leaves_its_place_once(script: Path, ended_by: str) -> None:
    pool = WorkerPool(script, size=1)
    first = pool.take()
    pool.close()
    pool.close()
    assert not is_running(first.process.pid)
    if ended_by != "nobody":
        getattr(pool, ended_by)(first)
    assert pool._free.acquire(timeout=0), "a later request would wait for ever"
    assert not pool._free.acquire(timeout=0), "more children than the size would run"
    pool._free.release()
    second = pool.take()
    assert second is not first and pool.ask(second, 1)[0] == 1
    pool.close()


def test_a_request_under_way_when_its_pool_closes_fails_and_the_next_one_is_answered(script: Path) -> None:
    pool = WorkerPool(script, size=1)
    taken = pool.take()
    with ThreadPoolExecutor(1) as threads:
        hanging = threads.submit(pool.ask, taken, "hang")
        while not hanging.running():
            time.sleep(0.01)
        pool.close()
        with pytest.raises(WorkerError, match="grading processes were ended"):
            hanging.result()
    assert replies_of(pool, [1])[0][0] == 1
    assert pool._free.acquire(timeout=0) and not pool._free.acquire(timeout=0)
    pool.close()


def starting_slowly(folder: Path) -> Path:
    """A child that says where it is and goes no further, until ``folder/go`` is there."""
    path = folder / "slow.py"
    path.write_text(
        "import os, pathlib, time\n"
        f"folder = pathlib.Path({str(folder)!r})\n"
        "(folder / f'{os.getpid()}.started').touch()\n"
        "while not (folder / 'go').exists():\n"
        "    time.sleep(0.01)\n" + textwrap.dedent(CHILD)
    )
    return path


def children_in(folder: Path) -> list[int]:
    return [int(path.stem) for path in folder.glob("*.started")]


def test_a_child_that_is_being_started_when_its_pool_closes_ends_and_its_request_fails(tmp_path: Path) -> None:
    pool = WorkerPool(starting_slowly(tmp_path), size=1)
    with ThreadPoolExecutor(1) as threads:
        request = threads.submit(pool.call, 1)
        while not children_in(tmp_path):
            time.sleep(0.01)
        pool.close()
        (tmp_path / "go").touch()
        with pytest.raises(WorkerError, match="grading processes were ended"):
            request.result()
    assert not is_running(children_in(tmp_path)[0])
    assert pool._free.acquire(timeout=0) and not pool._free.acquire(timeout=0)
    pool._free.release()
    assert replies_of(pool, [1])[0][0] == 1
    pool.close()


@pytest.mark.parametrize("waiting", [1, 3])
def test_requests_that_wait_for_a_child_when_their_pool_closes_start_none(tmp_path: Path, waiting: int) -> None:
    pool = WorkerPool(starting_slowly(tmp_path), size=1)
    (tmp_path / "go").touch()
    pool.take()
    with ThreadPoolExecutor(waiting) as threads:
        requests = [threads.submit(pool.call, number) for number in range(waiting)]
        while len(pool._free._cond._waiters) < waiting:  # type: ignore[attr-defined]
            time.sleep(0.01)
        pool.close()
        for request in requests:
            with pytest.raises(WorkerError, match="grading processes were ended"):
                request.result()
    (started,) = children_in(tmp_path)
    assert not is_running(started)
    assert replies_of(pool, [1])[0][0] == 1
    pool.close()


def test_a_script_that_cannot_start_is_an_error_not_a_wait(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit(7)")
    with pytest.raises(RuntimeError, match=r"(?s)broken\.py.*SystemExit: 7"):
        WorkerPool(broken).call(1)


def test_a_trainer_that_is_killed_takes_a_child_in_a_call_and_its_children_along(script: Path, tmp_path: Path) -> None:
    started = tmp_path / "pids"
    trainer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from pathlib import Path; from grpo_lightning.concurrency.worker_pool import WorkerPool\n"
            f"WorkerPool(Path({str(script)!r}), size=1, time_limit=600).call(('start', {str(started)!r}, 'hang'))",
        ]
    )
    while not (started.exists() and len(started.read_text().split()) == 2):
        assert trainer.poll() is None
        time.sleep(0.05)
    pids = [int(pid) for pid in started.read_text().split()]
    (worker,) = (int(pid) for pid in Path(f"/proc/{trainer.pid}/task/{trainer.pid}/children").read_text().split())
    trainer.kill()
    trainer.wait()
    assert all(ends(pid) for pid in (worker, *pids))
