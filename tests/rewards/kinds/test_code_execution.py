"""Tests of running code that is not trusted: verdicts, limits, and what it cannot reach."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from grpo_lightning.rewards import CodeExecutionReward, RewardContractError, RewardRunner
from grpo_lightning.rewards.sandbox.isolation import isolation
from grpo_lightning.rewards.sandbox.judge import run_printing
from grpo_lightning.rewards.sandbox.launch import MAX_OUTPUT, Limits

pytestmark = pytest.mark.skipif(bool(isolation().missing), reason="this kernel does not confine programs")


def judged(code: str, tests: Any, **settings: Any) -> tuple[float | None, str]:
    shown: dict[str, list[Any]] = {}
    reward = CodeExecutionReward(**settings)
    (value,) = reward(["p"], [code], log_extra=shown.__setitem__, tests=[tests])
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


def test_the_program_sees_nothing_of_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    code = "import os, sys\nseen = ['SECRET_TOKEN' in os.environ, 'torch' in sys.modules, *os.listdir('.')]"
    assert judged(code, "assert seen == [False, False]") == (1.0, "passed")


def test_output_is_cut_off() -> None:
    result = run_printing("print('y' * (3 * 2**20))", "", Limits(5.0, 2**30))
    assert result.verdict == "passed" and len(result.output) == MAX_OUTPUT


def test_it_works_from_any_thread_and_needs_a_fence_where_asked() -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(judged("x = 1", "assert x == 1")))
    thread.start()
    thread.join()
    assert found == [(1.0, "passed")]
    assert judged("x = 1", "assert x == 1", require_fence=True) == (0.0, "no code")


def test_tests_that_are_none_and_settings_that_cannot_work_are_refused() -> None:
    reward = CodeExecutionReward()
    with pytest.raises(RewardContractError, match="the test 3 cannot be run: it is of type int"):
        judged("x = 1", [3])
    with pytest.raises(RewardContractError, match="looked for the column tests or test or test_list or input_output"):
        reward(["p"], ["x"])
    for settings in ({"score": "half"}, {"time_limit": 0}, {"memory_mb": 1}, {"workers": -1}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            CodeExecutionReward(**settings)


def test_a_step_scores_programs_though_not_all_that_it_is_called_with_are_columns() -> None:
    runner = RewardRunner([CodeExecutionReward()])
    try:
        programs = [f"```python\ndef f():\n    return {n}\n```" for n in (1, 2)]
        table = runner.score(["p", "p"], programs, [[1], [2]], columns={"tests": [["assert f() == 1"]] * 2})
    finally:
        runner.close()
    assert table.values[:, 0].tolist() == [1.0, 0.0]
    assert table.extra["test_results"][0] == "passed"
