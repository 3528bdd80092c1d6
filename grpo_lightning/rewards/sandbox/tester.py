"""The test's side: runs the test, in a process that the program cannot reach, and writes the verdict."""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import os
import sys
import types
from typing import Any, NoReturn

from grpo_lightning.rewards.sandbox.python_runs import FORMS, TestFailed, without_main
from grpo_lightning.rewards.sandbox.python_source import parsed
from grpo_lightning.rewards.sandbox.remote import Link, Remote
from grpo_lightning.rewards.sandbox.wire import Wire

ALIASES = {"np": "numpy", "pd": "pandas"}


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
        text = parsed(f"{request['setup']}\n{request['test']}")
        namespace = _namespace(names, modules)
        _add_modules(namespace, text)
        if request["form"] == "unittest":
            without_main()
        exec(compile(request["setup"], "<setup>", "exec"), namespace)
        exec(compile(request["test"], "<test>", "exec"), namespace)
        FORMS[request["form"]](namespace)
        if not link.asked and not _reads_a_value(names, text):
            raise TestFailed("the test never used the program")
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


def _add_modules(namespace: dict[str, Any], text: ast.AST) -> None:
    """``math.isclose`` in a test that does not import math is the library's, whatever the program calls math."""
    asked: dict[str, set[str]] = {}
    for node in ast.walk(text):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            asked.setdefault(node.value.id, set()).add(node.attr)
    for name in asked.keys() - _bound(text):
        library = ALIASES.get(name, name)
        if library in sys.stdlib_module_names or (library in ALIASES.values() and name in namespace):
            module = importlib.import_module(library)
            if all(hasattr(module, attribute) for attribute in asked[name]):
                namespace[name] = module


def _reads_a_value(names: dict[str, Any], text: ast.AST) -> bool:
    """Whether the test reads a plain value of the program's, or asks whether something can be called: neither asks it."""
    read = {node.id for node in ast.walk(text) if isinstance(node, ast.Name)} - _bound(text)
    read |= {node.attr for node in ast.walk(text) if isinstance(node, ast.Attribute)}
    read |= {alias.name for node in ast.walk(text) if isinstance(node, ast.ImportFrom) for alias in node.names}
    return "callable" in read or any(name in read and not isinstance(value, Remote) for name, value in names.items())


def _bound(text: ast.AST) -> set[str]:
    """The names that the test itself gives to something."""
    bound = {node.id for node in ast.walk(text) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    return bound | {node.arg for node in ast.walk(text) if isinstance(node, ast.arg)}
