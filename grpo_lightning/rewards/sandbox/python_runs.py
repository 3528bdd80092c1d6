"""How the functions and classes of a test are run once its source has been: as plain asserts, as unittest or as pytest would."""

from __future__ import annotations

import itertools
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any


class TestFailed(Exception):
    """A unittest or pytest function failed, none ran, or none used the program."""

    __test__ = False


def run_unittest(namespace: dict[str, Any]) -> None:
    """Every TestCase of the namespace.

    Raises:
        TestFailed: If one fails, or none ran to its end.
    """
    import unittest  # slow to import, and not every test needs it

    suite = unittest.defaultTestLoader.loadTestsFromModule(sys.modules["test_solution"])
    result = unittest.TestResult()
    # A coroutine or a generator that a test returns has run nothing of it.
    warnings.filterwarnings("error", message="It is deprecated to return a value")
    suite.run(result)
    ran = result.testsRun - len(result.skipped) - len(result.expectedFailures)
    if not result.wasSuccessful() or ran < 1:
        raise TestFailed(f"{ran} ran, {len(result.failures)} failed, {len(result.errors)} raised")


def without_main() -> None:
    """Makes ``unittest.main()`` in a test's own text do nothing: the cases run afterwards, and it would end the process."""
    import unittest

    unittest.main = lambda *args, **kwargs: None  # type: ignore[assignment]


def run_pytest(namespace: dict[str, Any]) -> None:
    """Every function ``test_*`` and method of a class ``Test*``, with its parameters; fixtures were refused before.

    Raises:
        TestFailed: If there is none, or one gives False or something to be waited for in vain.
    """
    ran = 0
    _call(namespace.get("setup_module"))
    for function in list(_functions(namespace)):
        for arguments in _parameters(function):
            _run(function, arguments)
            ran += 1
    if ran == 0:
        raise TestFailed("no test function ran")


def _run(function: Any, arguments: dict[str, Any]) -> None:
    result = function(**arguments)
    if isinstance(result, types.CoroutineType):
        import asyncio  # slow to import, too

        result = asyncio.run(result)
    if isinstance(result, types.GeneratorType | types.AsyncGeneratorType):
        raise TestFailed(f"{function.__name__} is a generator, and nothing in it ran")
    if result is not None and not result:
        raise TestFailed(f"{function.__name__} gave {result!r}")


def _functions(namespace: dict[str, Any]) -> Iterator[Any]:
    for name, value in list(namespace.items()):
        if name.startswith("test") and isinstance(value, types.FunctionType):
            _call(namespace.get("setup_function"), value)
            yield value
        if name.startswith("Test") and isinstance(value, type):
            yield from _methods(value)


def _methods(kind: type) -> Iterator[Any]:
    """The test methods of a class and of those that it derives from, each bound to an instance of its own."""
    ancestors = [vars(ancestor) for ancestor in reversed(kind.__mro__)]
    names = dict.fromkeys(name for variables in ancestors for name in variables if name.startswith("test"))
    _call(getattr(kind, "setup_class", None))
    for name in names:
        instance = kind()
        method = getattr(instance, name)
        _call(getattr(instance, "setup_method", None), method)
        yield method


def _call(setup: Any, subject: Any = None) -> None:
    """Calls what pytest calls before a test, with the test if it is asked for."""
    if isinstance(setup, types.FunctionType | types.MethodType):
        takes_it = setup.__code__.co_argcount > isinstance(setup, types.MethodType)
        setup(*[subject] if takes_it else [])


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
