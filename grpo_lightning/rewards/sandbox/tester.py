"""The test's side: runs the test, in a process that the program cannot reach, and writes the verdict."""

from __future__ import annotations

import builtins
import importlib
import io
import itertools
import json
import os
import sys
import types
from collections.abc import Iterator
from typing import Any, NoReturn

from grpo_lightning.rewards.sandbox.remote import Link
from grpo_lightning.rewards.sandbox.wire import Wire

ALIASES = {"np": "numpy", "pd": "pandas"}


class TestFailed(Exception):
    """A unittest or pytest function failed, or none ran."""


def test(request: dict[str, Any]) -> None:
    """Runs the test against the program at the other end of the wire, and ends this process."""

    def end(verdict: str, why: str = "") -> NoReturn:
        os.write(request["verdict"], json.dumps([verdict, why[:1000]]).encode())
        os._exit(0)

    link = Link(Wire(*request["wire"]), end)
    found = link.names()
    if found is None:
        end("failed", "the program raised")
    names, modules = found
    try:
        namespace = _namespace(names, modules)
        exec(compile(request["setup"], "<setup>", "exec"), namespace)
        exec(compile(request["test"], "<test>", "exec"), namespace)
        FORMS[request["form"]](namespace)
    except BaseException as error:  # SystemExit of the program, skipped tests, too
        end("failed", f"{type(error).__name__}: {_text(error)}")
    end("passed")


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return ""


def _namespace(names: dict[str, Any], modules: dict[str, str]) -> dict[str, Any]:
    """A module with the program's names in it, but for builtins; modules are imported here, by their own names alone."""
    module, solution = types.ModuleType("test_solution"), types.ModuleType("solution")
    for name, value in names.items():
        if name.isidentifier() and not name.startswith("__"):
            setattr(solution, name, value)
            if not hasattr(builtins, name):
                setattr(module, name, value)
    for name, imported in modules.items():
        if imported == ALIASES.get(name, name) and imported in (*sys.stdlib_module_names, *ALIASES.values()):
            setattr(module, name, importlib.import_module(imported))
    sys.modules.update(solution=solution, test_solution=module)
    return module.__dict__


def run_unittest(namespace: dict[str, Any]) -> None:
    """Every TestCase of the namespace.

    Raises:
        TestFailed: If one fails, or none ran to its end.
    """
    import unittest  # slow to import, and not every test needs it

    suite = unittest.defaultTestLoader.loadTestsFromModule(sys.modules["test_solution"])
    result = unittest.TextTestRunner(stream=io.StringIO()).run(suite)
    ran = result.testsRun - len(result.skipped) - len(result.expectedFailures)
    if not result.wasSuccessful() or ran < 1:
        raise TestFailed(f"{ran} ran, {len(result.failures)} failed, {len(result.errors)} raised")


def run_pytest(namespace: dict[str, Any]) -> None:
    """Every function ``test_*`` and method of a class ``Test*``, with its parameters; fixtures were refused before.

    Raises:
        TestFailed: If there is none.
    """
    ran = 0
    for function in list(_functions(namespace)):
        for arguments in _parameters(function):
            function(**arguments)
            ran += 1
    if ran == 0:
        raise TestFailed("no test function ran")


def _functions(namespace: dict[str, Any]) -> Iterator[Any]:
    for name, value in namespace.items():
        if name.startswith("test") and isinstance(value, types.FunctionType):
            yield value
        if name.startswith("Test") and isinstance(value, type):
            for method in [method for method in vars(value) if method.startswith("test")]:
                instance = value()
                getattr(instance, "setup_method", lambda: None)()
                yield getattr(instance, method)


def _parameters(function: Any) -> Iterator[dict[str, Any]]:
    """Each set of arguments that ``pytest.mark.parametrize`` gives; one empty set where there is none."""
    choices: list[list[dict[str, Any]]] = []
    for mark in getattr(function, "pytestmark", []):
        if mark.name == "parametrize":
            named, rows = mark.args[0], mark.args[1]
            names = [name.strip() for name in named.split(",")] if isinstance(named, str) else list(named)
            choices.append([dict(zip(names, _row(row, len(names) == 1), strict=True)) for row in rows])
    for combination in itertools.product(*choices):
        yield {name: value for part in combination for name, value in part.items()}


def _row(row: Any, single: bool) -> Any:
    """The values of one ``pytest.param``, one row, or one value."""
    if type(row).__name__ == "ParameterSet":
        return row.values
    return (row,) if single else row


FORMS = {"asserts": lambda namespace: None, "unittest": run_unittest, "pytest": run_pytest}
