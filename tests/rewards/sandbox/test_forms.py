"""Tests of the forms in which data sets hold tests: each is run as what it is, and all others are refused by name."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from typing import Any

import pytest

from grpo_lightning.rewards import CodeExecutionReward, RewardContractError
from grpo_lightning.rewards.sandbox.forms import Printing, Row, recognised
from grpo_lightning.rewards.sandbox.isolation import isolation

pytestmark = pytest.mark.skipif(bool(isolation().missing), reason="this kernel does not confine programs")

HUMAN_EVAL_PROMPT = '''from typing import List
import math


def poly(xs: List[float], x: float) -> float:
    """The polynomial at x."""
    return sum(c * math.pow(x, i) for i, c in enumerate(xs))


def find_zero(xs: List[float]) -> float:
    """A zero of a polynomial of degree one."""
'''
HUMAN_EVAL_TEST = """
METADATA = {}

def check(candidate):
    for xs in ([2.0, 1.0], [1.0, 4.0]):
        assert math.fabs(poly(xs, candidate(xs))) < 1e-6
"""


def results(completion: str, prompt: str = "p", **columns: Any) -> str:
    shown: dict[str, list[Any]] = {}
    reward = CodeExecutionReward(time_limit=20.0)
    reward([prompt], [completion], log_extra=shown.__setitem__, **{k: [v] for k, v in columns.items()})
    return shown["test_results"][0]


RIGHT = {
    "def add(a, b):\n    return a + b": {
        "MBPP": {"test_list": ["assert add(1, 2) == 3", "assert add(2, 2) == 4"]},
        "MBPP with imports and setup": {
            "test_imports": ["import math"],
            "test_setup_code": "two = add(1, 1)",
            "test_list": ["assert math.isclose(add(two, 2), 4)", "assert add(two, 1) == 3"],
        },
        "check of HumanEval": {
            "test": "def check(candidate):\n    assert candidate(1, 2) == 3",
            "entry_point": "add",
        },
        "pytest": {"tests": "from solution import add\n\ndef test_add():\n    assert add(1, 2) == 3"},
        "pytest with parameters": {
            "tests": "import pytest\n\n@pytest.mark.parametrize('a, b', [(1, 2), pytest.param(3, 4)])\ndef test_add(a, b):\n    assert add(a, 1) == b"
        },
        "a class of pytest": {"tests": "class TestAdd:\n    def test_add(self):\n        assert add(1, 2) == 3"},
        "unittest": {
            "tests": "import unittest\n\nclass T(unittest.TestCase):\n    def test_add(self):\n        self.assertEqual(add(1, 2), 3)\n\nif __name__ == '__main__':\n    unittest.main()"
        },
        "asynchronous functions": {"tests": "async def test_add():\n    assert add(1, 2) == 3"},
        "asynchronous methods": {
            "tests": "class TestAdd:\n    async def test_add(self):\n        assert add(1, 2) == 3"
        },
        "inherited methods": {
            "tests": "class Base:\n    def test_add(self):\n        assert add(1, 2) == 3\n\nclass TestAdd(Base):\n    pass"
        },
        "what comes before functions": {
            "tests": "def setup_module():\n    global one\n    one = 1\n\ndef setup_function(function):\n    global two\n    two = 2\n\ndef test_add():\n    assert add(one, two) == 3"
        },
        "what comes before methods": {
            "tests": "class TestAdd:\n    @classmethod\n    def setup_class(cls):\n        cls.one = 1\n\n    def setup_method(self, method):\n        self.two = 2\n\n    def test_add(self):\n        assert add(self.one, self.two) == 3"
        },
        "unittest that starts itself": {
            "tests": "import unittest\n\nclass T(unittest.TestCase):\n    def test_add(self):\n        self.assertEqual(add(1, 2), 3)\n\nunittest.main()"
        },
        "APPS with fn_name": {
            "input_output": json.dumps({"fn_name": "add", "inputs": [[1, 2], ["a", "b"]], "outputs": [[3], "ab"]})
        },
        "LiveCodeBench, functional": {
            "tests": json.dumps([{"input": "1\n2", "output": "3", "testtype": "functional"}]),
            "metadata": json.dumps({"func_name": "add"}),
        },
        "DeepCoder, functional": {
            "tests": [{"type": "function_call", "fn_name": "add", "input": [1, 2], "output": 3}],
        },
    },
    "class Solution:\n    def pair(self, n):\n        return n, [n]": {
        "LeetCode's class": {"tests": {"fn_name": "pair", "inputs": [[1]], "outputs": [[1, [1]]]}},
        "check with a method": {
            "test": "def check(candidate):\n    assert candidate(1) == (1, [1])",
            "entry_point": "Solution().pair",
        },
    },
    "print(sum(map(int, input().split())))": {
        "APPS with an empty fn_name": {"tests": {"fn_name": "", "inputs": ["1 2"], "outputs": ["3"]}},
        "input and output": {"tests": {"input": "1 2", "output": "3"}},
        "JSON of input and output": {"tests": '[{"input": "1 2", "output": "3"}]'},
        "APPS": {"input_output": json.dumps({"inputs": ["1 2\n", "2 2\n"], "outputs": ["3\n", "4\n"]})},
        "TACO with lists of lines": {"tests": {"inputs": [["1 2"]], "outputs": [["3"]]}},
        "LiveCodeBench": {"public_test_cases": '[{"input": "1 2", "output": "3\\n", "testtype": "stdin"}]'},
    },
}
CASES = [(code, name, columns) for code, forms in RIGHT.items() for name, columns in forms.items()]
WRONG = {
    "def add(a, b):\n    return a - b": "def add(a, b):\n    return a + b",
    "class Solution:\n    def pair(self, n):\n        return n": "class Solution:\n    def pair(self, n):\n        return n, [n]",
    "print(0)": "print(sum(map(int, input().split())))",
}


@pytest.mark.parametrize(("code", "columns"), [case[::2] for case in CASES], ids=[case[1] for case in CASES])
def test_each_form_passes_what_is_right_and_fails_what_is_wrong(code: str, columns: dict[str, Any]) -> None:
    assert set(results(code, **columns).split(", ")) == {"passed"}
    wrong = next(bad for bad, good in WRONG.items() if good == code)
    assert "passed" not in results(wrong, **columns)


@pytest.mark.parametrize(
    "completion",
    ["    return -xs[0] / xs[1]\n", "def find_zero(xs: List[float]) -> float:\n    return -xs[0] / xs[1]"],
    ids=["a body", "a function"],
)
def test_human_eval_goes_on_with_its_prompt_and_uses_its_helpers(completion: str) -> None:
    columns = {"test": HUMAN_EVAL_TEST, "entry_point": "find_zero"}
    assert results(completion, HUMAN_EVAL_PROMPT, **columns) == "passed"
    forged = f"{completion}\ndef poly(xs, x): return 0.0\nfind_zero = lambda xs: 5.0\n"
    assert results(forged, HUMAN_EVAL_PROMPT, **columns) == "failed"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"test": "def check(candidate):\n    assert candidate(1)"}, "no column entry_point says"),
        ({"test": "def check(c):\n    pass", "entry_point": "add"}, "it asserts nothing"),
        ({"tests": "x = 1"}, "it asserts nothing"),
        ({"tests": "pass"}, "it asserts nothing"),
        ({"tests": "def verify(f):\n    assert f"}, "it defines verify and calls nothing"),
        ({"tests": "this is, prose!"}, "neither JSON nor Python"),
        ({"tests": '{"cases": []}'}, "it has cases"),
        ({"tests": {}, "test": 3}, None),
        ({"tests": 3}, "it is of type int"),
        ({"tests": "assert (add(1) == 1, 'no')"}, "is true whatever it says: drop the parentheses"),
        ({"tests": {"input": "1", "output": None}}, "nothing says what the program must print"),
        ({"tests": {"inputs": ["1"], "outputs": [None]}}, "nothing says what the program must print"),
        ({"tests": {"fn_name": "add", "inputs": ["one"], "outputs": ["1"]}}, "the arguments of add are no lines of JSON"),
        ({"tests": {"inputs": ["1"], "outputs": []}}, "lists of the same length"),
        ({"tests": [{"input": "1", "output": "1", "testtype": "functional"}]}, "says of which function"),
        ({"tests": [{"input": "1", "output": "1", "testtype": "interactive"}]}, "testtype 'interactive'"),
        ({"tests": "import nowhere_to_be_found\nassert add"}, "imports nowhere_to_be_found, which is not installed"),
        ({"tests": "def test_x(tmp_path):\n    assert tmp_path"}, "test_x takes tmp_path, and fixtures"),
        ({"tests": "import pytest\n@pytest.fixture\ndef x(): return 1\ndef test_a(x): assert x"}, "x is a fixture of pytest"),
    ],
)  # fmt: skip
def test_other_forms_are_refused_by_name_and_empty_ones_pass_nothing(columns: dict[str, Any], message: str) -> None:
    if message is None:
        assert results("add = 1", **columns) == ""
        return
    with pytest.raises(RewardContractError, match=message):
        results("add = 1", **columns)


def test_pickled_tests_of_live_code_bench_are_refused() -> None:
    private = base64.b64encode(zlib.compress(pickle.dumps('[{"input": "1", "output": "1"}]'))).decode()
    with pytest.raises(RewardContractError, match="cannot be run"):
        recognised(private, Row())


BLANK: list[Any] = [{"input": "", "output": "\n"}, {"inputs": [""], "outputs": [""]}]


@pytest.mark.parametrize(
    "tests", [None, [], "", "  \n", "# nothing", [""], "[]", '{"inputs": [], "outputs": []}', *BLANK]
)
def test_a_row_without_tests_has_no_reward(tests: Any) -> None:
    assert CodeExecutionReward()(["p"], ["x = 1"], tests=[tests]) == [None]


@pytest.mark.parametrize(
    "tests",
    [
        "import unittest\nclass T(unittest.TestCase):\n    @unittest.skip('no')\n    def test(self):\n        self.assertTrue(1)",
        "import unittest\nclass T(unittest.TestCase):\n    def no_test(self):\n        self.assertTrue(1)",
        "import pytest\ndef test_a():\n    pytest.skip()\n    assert 1",
        "import pytest\n@pytest.mark.parametrize('a', [])\ndef test_a(a):\n    assert a",
        "import unittest\nclass T(unittest.TestCase):\n    async def test(self):\n        self.assertEqual(add(1), 2)",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        yield self.assertEqual(add(1), 2)",
        "def test_a():\n    yield\n    assert add(1) == 2",
        "def test_a():\n    def inner():\n        assert add(1) == 2",
        "def test_a():\n    if add(1):\n        return add(1) == 2\n    assert False",
        "assert True",
        "x = 3\nassert x == 3",
        "class TestA:\n    def test_a(self, x=2):\n        assert x == 2",
    ],
)
def test_a_test_of_which_nothing_ran_or_that_asks_the_program_nothing_does_not_pass(tests: str) -> None:
    assert results("x = 1\ndef add(a): return a", tests=tests) == "failed"


def test_a_check_that_never_calls_its_candidate_does_not_pass() -> None:
    check = "def check(candidate):\n    for given in []:\n        assert candidate(given) == 1"
    assert results("def add(a): return a", test=check, entry_point="add") == "failed"


def test_a_test_may_ask_for_a_value_or_whether_there_is_a_function() -> None:
    assert results("x = 1", tests="import solution\nassert solution.x == 1") == "passed"
    assert results("x = 1", tests="from solution import x as y\nassert y == 1") == "passed"
    assert results("def add(a): return a", tests="assert callable(add)") == "passed"


def test_an_output_of_megabytes_is_read_to_its_end() -> None:
    columns = {"tests": {"input": "", "output": "9" * 2_500_000 + "8"}}
    assert results("print('9' * 2_500_000 + '8')", **columns) == "passed"
    assert results("print('9' * 2_500_000 + '7')", **columns) == "wrong output"


def test_lines_of_input_are_joined_and_functions_arguments_are_read_as_json() -> None:
    assert recognised({"inputs": [[1, "b"]], "outputs": ["c"]}, Row()) == [Printing("1\nb", "c")]
    (case,) = recognised({"input": '[1]\n"x"', "output": "[2]", "testtype": "functional"}, Row(fn_name="f"))
    assert "[[[1], \"x\"], [2]]" in case.code  # fmt: skip  # type: ignore[union-attr]
