"""Tests in Python: which form a source is in, and whether it tests anything at all. Read as a syntax tree, never run here."""

from __future__ import annotations

import ast
import functools
import re
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import PathFinder

from grpo_lightning.rewards.sandbox.judge import TestSource
from grpo_lightning.rewards.sandbox.python_source import parsed

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
ENTRY_POINT = re.compile(r"[A-Za-z_]\w*(\(\))?(\.[A-Za-z_]\w*)*")


def python_test(source: str, entry_point: str | None, setup: str, prompt: str) -> Iterator[TestSource]:
    """The test in its form; nothing for a source without statements.

    Args:
        source: Python.
        entry_point: The name that HumanEval gives its ``check``.
        setup: Python that the row wants before it.
        prompt: Where it is Python, its imports and helpers come before it, too.

    Raises:
        ValueError: If it is not Python, is of no known form, or asserts nothing.
    """
    tree, before = _parsed(source, "it is neither JSON nor Python"), _parsed(setup, "its setup is no Python")
    if not tree.body:
        return
    _check_imports(tree)
    _check_imports(before)
    setup = "\n".join(part for part in (_helpers(prompt, entry_point), setup) if part)
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    if not _asserts(tree) and not _asserts(before):
        raise ValueError("it asserts nothing")
    _refuse_pairs(tree)
    if any(isinstance(node, ast.ClassDef) and _is_test_case(node) for node in tree.body):
        yield TestSource(source, setup, "unittest")
    elif "check" in functions and not _acts(tree):
        if not entry_point:
            raise ValueError("it defines check, and no column entry_point says with what to call it")
        if not ENTRY_POINT.fullmatch(entry_point):
            raise ValueError(f"entry_point {entry_point!r} is no function")
        yield TestSource(f"{source}\ncheck({entry_point})", setup)
    elif any(name.startswith("test") for name in functions) or any(_is_test_class(node) for node in tree.body):
        _refuse_fixtures(tree)
        yield TestSource(source, setup, "pytest")
    elif _acts(tree):
        alias = f"candidate = {entry_point}\n" if entry_point and ENTRY_POINT.fullmatch(entry_point) else ""
        yield TestSource(alias + source, setup)
    else:
        names = ", ".join(node.name for node in tree.body if isinstance(node, DEFINITIONS))
        raise ValueError(f"it defines {names or 'names'} and calls nothing")


def completed(code: str, prompt: str, entry_point: str | None) -> str:
    """The program: the code, after the prompt where that is Python which the code goes on with, as in HumanEval."""
    if not entry_point or not _helpers(prompt, entry_point):
        return code
    whole = f"{prompt}\n{code}"
    try:
        parsed(whole)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return code
    return whole


@functools.lru_cache(maxsize=64)
def _helpers(prompt: str, entry_point: str | None) -> str:
    """The prompt as Python without the function that is asked for; empty where it is not Python."""
    if not entry_point or "def " not in prompt:
        return ""
    try:
        tree = parsed(prompt)
    except (SyntaxError, ValueError, RecursionError):
        return ""
    asked = re.split(r"[.(]", entry_point)[0]
    kept = [node for node in tree.body if not (isinstance(node, DEFINITIONS) and node.name == asked)]
    kept = [node for node in kept if isinstance(node, (*DEFINITIONS, ast.Import, ast.ImportFrom, ast.Assign))]
    return ast.unparse(ast.Module(kept, [])) or "pass" if len(kept) < len(tree.body) else ""


def _parsed(source: str, complaint: str) -> ast.Module:
    try:
        return parsed(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{complaint}: {error}") from error


def _asserts(tree: ast.AST) -> bool:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert | ast.Raise):
            return True
        if isinstance(node, ast.Call) and re.search("assert|raises", ast.unparse(node.func)):
            return True
    return False


def _refuse_pairs(tree: ast.AST) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and isinstance(node.test, ast.Tuple) and node.test.elts:
            raise ValueError(f"{ast.unparse(node)} is true whatever it says: drop the parentheses")


def _acts(tree: ast.Module) -> bool:
    """Whether the module itself asserts, raises, or calls something other than print."""
    waiting: list[ast.AST] = [node for node in tree.body if not _is_main_guard(node)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (*DEFINITIONS, ast.Lambda)):
            continue
        if isinstance(node, ast.Assert | ast.Raise):
            return True
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and ast.unparse(node.value.func) != "print":
            return True
        waiting.extend(ast.iter_child_nodes(node))
    return False


def _is_main_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def _is_test_case(node: ast.ClassDef) -> bool:
    return any("TestCase" in ast.unparse(base) for base in node.bases)


def _is_test_class(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and node.name.startswith("Test")


def _refuse_fixtures(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            if any("fixture" in decorator for decorator in decorators):
                raise ValueError(f"{node.name} is a fixture of pytest, which is not supported")
            wanted = node.args.args[: len(node.args.args) - len(node.args.defaults)]
            given = [argument.arg for argument in wanted if argument.arg not in ("self", "cls")]
            if node.name.startswith("test") and given and not any("parametrize" in text for text in decorators):
                raise ValueError(f"{node.name} takes {', '.join(given)}, and fixtures of pytest are not supported")


def _check_imports(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            if not _is_installed(name.partition(".")[0]):
                raise ValueError(f"it imports {name}, which is not installed; the program is imported as solution")


@functools.cache
def _is_installed(module: str) -> bool:
    if module in ("solution", "__future__") or module in sys.stdlib_module_names:
        return True
    paths = sysconfig.get_paths()
    return PathFinder.find_spec(module, [paths["purelib"], paths["platlib"]]) is not None
