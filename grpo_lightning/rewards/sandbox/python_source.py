"""Python as text: parsed without running it."""

from __future__ import annotations

import ast
from typing import Any

TRIES = 10


def parsed(source: str) -> ast.Module:
    """The syntax tree of a module's source, from any thread.

    Before 3.11.8 Python counts the depth of its parser in one place for all threads and finalizers
    (https://github.com/python/cpython/issues/106905): where another tree is built in between, as by a finalizer that
    logs a traceback, ``ast.parse`` raises ``SystemError`` about source that is right. It is asked again then.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: As ``ast.parse``, about the source.

    Example:
        >>> [type(node).__name__ for node in parsed("a = 1; f(a)").body]
        ['Assign', 'Expr']
    """
    return _parsed(source, "exec")


def parsed_expression(source: str) -> ast.expr:
    """The same for the source of one expression.

    Example:
        >>> type(parsed_expression("1 + 1")).__name__
        'BinOp'
    """
    return _parsed(source, "eval").body


def _parsed(source: str, mode: str) -> Any:
    for _ in range(TRIES - 1):
        try:
            return ast.parse(source, mode=mode)
        except SystemError:
            continue
    return ast.parse(source, mode=mode)
