"""Tests of running code that is not trusted: verdicts, limits, and what it cannot reach."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from grpo_lightning.rewards import CodeExecutionReward, RewardContractError
from grpo_lightning.rewards.runtime import sandbox
from grpo_lightning.rewards.runtime.sandbox import Limits, run_program


def judged(code: str, tests: Any, **settings: Any) -> tuple[float | None, str]:
    shown: dict[str, list[Any]] = {}
    reward = CodeExecutionReward(**settings)
    (value,) = reward(["p"], [code], None, None, log_extra=shown.__setitem__, tests=[tests])
    return value, shown["test_results"][0]


ADD = "Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nDone."


def test_the_score_is_the_share_of_tests_passed_or_all_or_nothing() -> None:
    tests = ["assert add(1, 2) == 3", "assert add(1, 2) == 4", "assert add('a', 'b') == 'ab'"]
    assert judged(ADD, tests) == (pytest.approx(2 / 3), "passed, failed, passed")
    assert judged(ADD, tests, score="all") == (0.0, "passed, failed, not run")
    assert judged(ADD, tests[0], score="all") == (1.0, "passed")
    assert judged(ADD, None) == (None, "") and judged(ADD, []) == (None, "")


def test_programs_are_judged_by_what_they_print() -> None:
    code = "n = int(input())\nfor i in range(n):\n    print(i, '')"
    tests = [{"input": "2\n", "output": "0\n1"}, {"input": "1", "output": "1"}, {"input": "x", "output": ""}]
    assert judged(code, tests) == (pytest.approx(1 / 3), "passed, wrong output, failed")
    assert judged("import sys\nprint('ok')\nsys.exit()", {"input": "", "output": "ok\n"}) == (1.0, "passed")


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("import sys; sys.exit(0)", "failed"),
        ("import os; os._exit(0)", "died"),
        ("def f(:", "failed"),
        ("while True: pass", "timeout"),
        ("import time\ntry:\n    time.sleep(600)\nexcept BaseException:\n    pass", "timeout"),
        ("x = [0] * 10**10", "failed"),
        ("open('big', 'wb').write(bytes(2**26))", "failed"),
        ("raise KeyboardInterrupt", "failed"),
        ("def f(): f()\nf()", "failed"),
        ("import signal, os; os.kill(os.getpid(), signal.SIGKILL)", "died"),
        ("\0", "no code"),
        ("#" * 200_000, "no code"),
        ("   ", "no code"),
    ],
    ids=lambda text: text[:24],
)
def test_leaving_early_hanging_and_eating_memory_is_no_pass(code: str, verdict: str) -> None:
    assert judged(code, "assert True", time_limit=1.0) == (0.0, verdict)


def test_the_program_sees_nothing_of_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    code = "import os, sys\nassert 'SECRET_TOKEN' not in os.environ and 'torch' not in sys.modules\nopen('left', 'w')"
    assert judged(code, "assert os.listdir('.') == ['left']") == (1.0, "passed")
    assert not Path("left").exists()


def test_neither_the_network_nor_this_machine_can_be_reached() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    code = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=2)"
    assert judged(code, "assert True") == (0.0, "failed")
    server.close()


def test_without_namespaces_sockets_and_processes_are_refused_by_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_namespaces", tuple)
    limits = Limits(2.0, 2**30)
    refused = (
        "import socket; socket.socket()",
        "import os; os.system('true')",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.fork()",
        "import ctypes; ctypes.CDLL(None)",
    )
    for code in refused:
        assert run_program(code, None, "", limits).verdict == "failed", code
    assert run_program("x = 1", "assert x == 1", "", limits).verdict == "passed"
    assert run_program("while True: pass", None, "", limits).verdict == "timeout"


def test_what_a_program_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    if not sandbox._namespaces():
        pytest.skip("needs user namespaces")
    beat = tmp_path / "beat"
    code = f"""
import os, time
if os.fork() == 0:
    os.setsid()
    while True:
        open({str(beat)!r}, "a").write("x")
        time.sleep(0.02)
time.sleep(0.3)
"""
    assert judged(code, "assert True")[1] == "passed"
    size = beat.stat().st_size
    time.sleep(0.3)
    assert beat.stat().st_size == size


def test_output_is_cut_off() -> None:
    result = run_program("print('y' * (3 * 2**20))", None, "", Limits(5.0, 2**30))
    assert result.verdict == "passed" and len(result.output) == sandbox.MAX_OUTPUT


def test_it_works_from_any_thread_and_needs_a_fence_where_asked() -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(judged("x = 1", "assert x == 1")))
    thread.start()
    thread.join()
    assert found == [(1.0, "passed")]
    assert judged("x = 1", "assert x == 1", require_fence=True) == (0.0, "no code")


def test_tests_that_are_none_and_settings_that_cannot_work_are_refused() -> None:
    reward = CodeExecutionReward()
    with pytest.raises(RewardContractError, match="the test 3 is neither Python source nor a mapping"):
        judged("x = 1", [3])
    with pytest.raises(RewardContractError, match="looked for the column tests or test or test_list"):
        reward(["p"], ["x"], None, None)
    for settings in ({"score": "half"}, {"time_limit": 0}, {"memory_mb": 1}, {"workers": -1}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            CodeExecutionReward(**settings)
    assert os.getpid()  # this process is still here
