"""Tests of the verdict: a program that attacks its test gets no pass, and one that is right gets it."""

from __future__ import annotations

import pytest

from grpo_lightning.rewards.sandbox.judge import TestSource, run_printing, run_tested
from grpo_lightning.rewards.sandbox.launch import Limits

LIMITS = Limits(10.0, 2**30)
TEST = "result = f(3)\nassert result == 9\nassert abs(result - 9.0) < 1e-6\nassert f(4) == 16"


def verdict(code: str, test: str, form: str = "asserts", setup: str = "") -> str:
    return run_tested(code, TestSource(test, setup, form), LIMITS).verdict


ALWAYS_EQUAL = """
class Always{base}:
    __eq__ = lambda self, other: True
    __ne__ = lambda self, other: False
    __lt__ = __le__ = __gt__ = __ge__ = __contains__ = lambda self, other: True
    __sub__ = __rsub__ = __add__ = lambda self, other: 0
    __hash__ = lambda self: 0
    __abs__ = __bool__ = lambda self: 0
    __float__ = lambda self: 9.0
def f(x): return Always({value})
"""

FORGED = {
    "an object that is equal to everything": ALWAYS_EQUAL.format(base="", value=""),
    "an int that is equal to everything": ALWAYS_EQUAL.format(base="(int)", value="1"),
    "a str that is equal to everything": ALWAYS_EQUAL.format(base="(str)", value="'x'"),
    "exec and compile replaced": "import builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None\nf = lambda x: 0",
    "abs, all and len replaced": "import builtins\nbuiltins.abs = abs = lambda x: 0\nall = any = lambda x: True\nf = lambda x: 0",
    "frames walked and every global made true": """
import sys, gc
def f(x):
    frame = sys._getframe()
    while frame:
        for name in ("result", "expected", "assert"):
            frame.f_globals[name] = 9
        frame = frame.f_back
    for found in gc.get_objects():
        if isinstance(found, dict) and "test" in found:
            found["test"] = ""
    return 0
""",
    "the verdict written to every open file": """
import os
def f(x):
    for fd in range(3, 64):
        try: os.write(fd, b'["passed", ""]\\n["ok", 9, []]\\n')
        except OSError: pass
    os._exit(0)
""",
    "StopIteration in place of an answer": "def f(x): raise StopIteration",
    "leaving with status 0": "import os\ndef f(x): os._exit(0)",
    "leaving at once": "import os\nos._exit(0)",
    "SystemExit": "raise SystemExit(0)",
    "a trace function": "import sys\ndef t(frame, event, arg):\n    frame.f_lineno += 1\n    return t\nsys.settrace(t)\nf = lambda x: 0",
    "nonsense on the wire": "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'[]\\n{}\\n')\n    except OSError: pass\nf = lambda x: 9",
}


@pytest.mark.parametrize("code", FORGED.values(), ids=FORGED)
def test_a_program_cannot_forge_its_verdict(code: str) -> None:
    assert verdict(code, TEST) in ("failed", "died")


def test_the_test_above_passes_a_program_that_is_right() -> None:
    assert verdict("def f(x): return x * x", TEST) == "passed"


@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("def f(x): raise StopIteration", "assert all(map(f, [1, 2]))"),
        ("def f(x): raise StopIteration", "for got in map(f, [1]): assert got == 1\nelse: pass\nassert list(map(f, [1])) == [1]"),
        ("import unittest\ndef f(): raise unittest.SkipTest", "f()\nassert True"),
        ("import os\ndef f(): os._exit(0)", "try: f()\nexcept BaseException: pass\nassert True"),
        ("class A:\n    __array_interface__ = {'data': (0, False), 'shape': (1,), 'typestr': '<i8'}\nf = A", "import numpy\nassert numpy.allclose(f(), [1])"),
        ("import pytest\ndef f(): pytest.skip()", "f()\nassert True"),
        ("def isinstance(*a): return True\nf = lambda: 'x'", "assert isinstance(f(), int)"),
        ("class math:\n    isclose = staticmethod(lambda *a: True)\nf = lambda: 1", "assert math.isclose(f(), 2)"),
        ("class collections:\n    class Counter:\n        def __init__(self, x): pass\n        def __eq__(self, other): return True\nf = lambda: 1", "assert collections.Counter([f()]) == collections.Counter([2])"),
        ("import random as math\nmath.isclose = lambda *a: True\nf = lambda: 1", "import math\nassert math.isclose(f(), 2)"),
    ],
)  # fmt: skip
def test_a_program_cannot_end_a_test_before_its_comparison(code: str, test: str) -> None:
    assert verdict(code, test) in ("failed", "died")


@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("def f(l): l.sort()", "a = [3, 1]\nf(a)\nassert a == [1, 3]"),
        ("def f(d): d['n'] = [1]", "d = {}\nassert f(d) is None and d == {'n': [1]}"),
        ("def f(): return {(1, 2): {3}, 'b': b'x', 'n': 2**200, 'c': 1j, 'r': range(3)}",
         "assert f() == {(1, 2): {3}, 'b': b'x', 'n': 2**200, 'c': 1j, 'r': range(3)}"),
        ("import decimal, fractions, datetime\ndef f(): return [decimal.Decimal('0.1'), fractions.Fraction(1, 3), datetime.date(2020, 1, 2)]",
         "from decimal import Decimal\nfrom fractions import Fraction\nimport datetime\nassert f() == [Decimal('0.1'), Fraction(1, 3), datetime.date(2020, 1, 2)]"),
        ("def f():\n    n = 0\n    while True:\n        yield n\n        n += 1", "import itertools\nassert list(itertools.islice(f(), 3)) == [0, 1, 2]"),
        ("def f(g, xs): return [g(x) for x in xs]", "assert f(lambda x: x + 1, [1, 2]) == [2, 3] and f(str, [1]) == ['1']"),
        ("class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x); return self\n    def __len__(self): return len(self.items)",
         "s = Stack()\nassert s.push(1) is s and len(s) == 1 and s.items == [1] and isinstance(s, Stack) and not isinstance([], Stack)"),
        ("from dataclasses import dataclass\n@dataclass(order=True)\nclass P:\n    x: int\n    def __add__(self, other): return P(self.x + other.x)\n    def __mul__(self, n): return P(self.x * n)",
         "assert P(1) + P(2) == P(3) and P(1) < P(2) and P(2) * 3 == P(6) and P(1) != P(2) and P(1) != 1"),
        ("class TooDeep(ValueError): pass\ndef f(x): raise TooDeep('no', x)",
         "try: f(3)\nexcept TooDeep as e: assert e.args == ('no', 3) and isinstance(e, ValueError)\nelse: assert False"),
        ("import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return x", "import asyncio\nassert asyncio.run(f(4)) == 4"),
        ("def f(x): return x ** 0.5", "assert math.isclose(f(2), 2 ** 0.5)"),
        ("class queue:\n    put = staticmethod(lambda x: x)", "assert queue.put(2) == 2"),
        ("import math\ndef f(x): return math.sqrt(x)", "assert math.isclose(f(2), 2 ** 0.5)"),
        ("class C:\n    def __enter__(self): return 5\n    def __exit__(self, *a): pass", "with C() as c: assert c == 5"),
        ("from collections import Counter, deque\ndef f(x): return Counter(x), deque(x)", "from collections import deque\nassert f('aab') == ({'a': 2, 'b': 1}, deque('aab'))"),
        ("import numpy as np\ndef f(x): return np.array(x) * 2", "assert np.allclose(f([1, 2]), [2, 4])"),
    ],
)  # fmt: skip
def test_a_right_program_passes_from_the_other_process(code: str, test: str) -> None:
    result = run_tested(code, TestSource(test), LIMITS)
    assert (result.verdict, result.why) == ("passed", "")


def test_a_class_may_decide_over_its_own_objects_but_not_over_the_tests() -> None:
    code = "class N:\n    def __init__(self, x): self.x = x\n    def __eq__(self, other): return True\nf = N"
    assert verdict(code, "assert f(1) == f(1)") == "passed"
    assert verdict(code, "assert f(1) == 1") == "failed"
    assert verdict(code, "assert f(1) in [1, 2]") == "failed"
    assert verdict(code, "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertAlmostEqual(f(1), 1)", "unittest") == "failed"  # fmt: skip


def test_what_the_trusted_setup_defines_is_not_the_programs() -> None:
    program = "def helper(x): return 0\ndef f(x): return 5"
    assert verdict(program, "assert helper(f(1)) == 0", setup="def helper(x): return x") == "failed"


@pytest.mark.parametrize(
    "code",
    [
        "import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\nwhile True: pass",
        "import signal\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\nimport time\ntime.sleep(600)",
        "import time\ntime.time = time.monotonic = lambda: 0\ntry: time.sleep(600)\nexcept BaseException: pass",
    ],
)
def test_the_time_is_taken_outside_and_no_signal_stops_it(code: str) -> None:
    limits = Limits(1.0, 2**30)
    assert run_printing(code, "", limits).verdict == "timeout"
    assert run_tested(f"def f():\n    {code.replace(chr(10), chr(10) + '    ')}", TestSource("assert f()"), limits).verdict == "timeout"  # fmt: skip
