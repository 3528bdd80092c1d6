"""Recognises the forms in which data sets hold tests of code, and refuses all others by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grpo_lightning.rewards.base import RewardContractError
from grpo_lightning.rewards.sandbox.judge import TestSource
from grpo_lightning.rewards.sandbox.python_tests import python_test

KNOWN = (
    "input and output (what a program reads and must print), inputs and outputs with or without fn_name (APPS, TACO, "
    "DeepCoder), a list of input, output and testtype (LiveCodeBench), assert statements (MBPP), check with the column "
    "entry_point (HumanEval), functions test_* (pytest), TestCase classes (unittest)"
)
SETUP_COLUMNS = ("test_imports", "test_setup_code", "test_setup")
COMPARED = """
import json, solution
def plain(value):
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return {{str(key): plain(item) for key, item in value.items()}} if isinstance(value, dict) else value
args, expected = json.loads({case!r})
function = getattr(solution, {name!r}, None)
if function is None:
    function = getattr(solution.Solution(), {name!r})
result = plain(function(*args))
assert result == expected or {wrapped} and [result] == expected
"""


@dataclass(frozen=True)
class Printing:
    """What a program reads, and must print."""

    input: str
    output: str


Case = Printing | TestSource


@dataclass(frozen=True)
class Row:
    """What a row says beside its tests."""

    entry_point: str | None = None
    """The function that HumanEval's ``check`` is called with."""
    fn_name: str | None = None
    """The function that input and output are of; None for a program that reads and prints."""
    setup: str = ""
    """Python that runs before a test."""
    prompt: str = ""
    """The text of the prompt; where it is Python, as in HumanEval, its imports and helpers serve the test."""

    @classmethod
    def of(cls, columns: Mapping[str, Any], prompt: Any) -> Row:
        """Read from the columns of one row."""
        setups = [columns.get(name) or "" for name in SETUP_COLUMNS]
        text = "\n".join("\n".join(setup) if isinstance(setup, list | tuple) else str(setup) for setup in setups)
        name = columns.get("fn_name") or columns.get("func_name") or _function_of(columns.get("metadata"))
        return cls(columns.get("entry_point"), name, text.strip(), prompt if isinstance(prompt, str) else "")


def recognised(tests: Any, row: Row) -> list[Case]:
    """The cases of one row, in order; none where its tests are empty.

    Args:
        tests: A column's value: text (Python, or JSON of the other forms), a mapping, a list of them, or None.
        row: What else the row says.

    Raises:
        RewardContractError: If it is none of the known forms, or a test that tests nothing.
    """
    if tests is None or (isinstance(tests, str | list | tuple | dict) and not tests):
        return []
    if isinstance(tests, list | tuple):
        return [case for test in tests for case in recognised(test, row)]
    if isinstance(tests, Mapping):
        return _mapping(tests, row)
    if isinstance(tests, str):
        return _text(tests, row)
    raise refused(tests, f"it is of type {type(tests).__name__}")


def refused(tests: Any, why: str) -> RewardContractError:
    """The error for a form that is not known."""
    return RewardContractError(f"the test {tests!r:.200} cannot be run: {why}. Known forms: {KNOWN}.")


def _text(tests: str, row: Row) -> list[Case]:
    text = tests.strip()
    if text[:1] in ("[", "{"):
        try:
            return recognised(json.loads(text), row)
        except json.JSONDecodeError:
            pass  # Python may start with a bracket, too
    try:
        return list(python_test(text, row.entry_point, row.setup, row.prompt))
    except ValueError as error:
        raise refused(tests, str(error)) from error


def _mapping(tests: Mapping[str, Any], row: Row) -> list[Case]:
    name = tests.get("fn_name") or tests.get("func_name") or _function_of(tests.get("metadata")) or row.fn_name
    if {"inputs", "outputs"} <= set(tests):
        inputs, outputs = tests["inputs"], tests["outputs"]
        if not isinstance(inputs, list | tuple) or not isinstance(outputs, list | tuple) or len(inputs) != len(outputs):
            raise refused(dict(tests), "inputs and outputs must be lists of the same length")
        pairs = zip(inputs, outputs, strict=True)
        return [case for given, wanted in pairs for case in _cases(given, wanted, name, wrapped=True)]
    if {"input", "output"} <= set(tests):
        kind = tests.get("testtype") or tests.get("type") or ("functional" if tests.get("fn_name") else "stdin")
        if kind in ("stdin", "stdin_stdout"):
            return _cases(tests["input"], tests["output"], None)
        if kind not in ("functional", "function_call"):
            raise refused(dict(tests), f"testtype {kind!r} is neither stdin nor functional")
        if not name:
            raise refused(dict(tests), "it is functional and no fn_name, func_name or metadata says of which function")
        return _cases(tests["input"], tests["output"], name)
    raise refused(dict(tests), f"it has {', '.join(map(str, tests)) or 'no keys'}")


def _cases(given: Any, wanted: Any, name: str | None, wrapped: bool = False) -> list[Case]:
    """One case, or none where nothing is read and nothing need be printed: every program would pass."""
    if not name:
        if wanted is None:
            raise refused({"input": given, "output": wanted}, "nothing says what the program must print")
        printing = Printing(_lines(given), _lines(wanted))
        return [printing] if printing.input.strip() or printing.output.strip() else []
    if not str(name).isidentifier():
        raise refused(name, "fn_name is no name of a function")
    try:
        args = (
            [json.loads(line) for line in given.splitlines() if line.strip()] if isinstance(given, str) else list(given)
        )
    except (TypeError, ValueError) as error:
        raise refused({"input": given}, f"the arguments of {name} are no lines of JSON ({error})") from error
    expected = wanted
    if isinstance(given, str) and isinstance(wanted, str):  # LiveCodeBench writes both as JSON
        try:
            expected = json.loads(wanted)
        except json.JSONDecodeError:
            expected = wanted
    case = json.dumps([args, expected])
    # APPS wraps results in a list, and its own check takes either.
    return [TestSource(COMPARED.format(case=case, name=name, wrapped=wrapped))]


def _lines(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _function_of(metadata: Any) -> str | None:
    """LiveCodeBench names the function in a column ``metadata``, as JSON."""
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
        except json.JSONDecodeError:
            return None
    return metadata.get("func_name") if isinstance(metadata, Mapping) else None
