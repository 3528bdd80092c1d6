"""Tracebacks of rewards as their authors want to read them: from the reward's own code on."""

from __future__ import annotations

import asyncio
import os
import traceback
from pathlib import Path

PACKAGE = str(Path(__file__).parents[1]) + os.sep


def as_exception(error: BaseException) -> Exception:
    """What a future takes, and a coroutine raises, in place of what would end more than one call.

    Example:
        >>> as_exception(SystemExit(3)), as_exception(ValueError("no"))
        (RuntimeError('raised SystemExit: 3'), ValueError('no'))
    """
    if isinstance(error, asyncio.CancelledError):
        raised = RuntimeError("was cancelled")
    elif isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    else:
        raised = RuntimeError(f"raised {''.join(traceback.format_exception_only(error)).strip()}")
    raised.__cause__ = error
    return raised


def traceback_of(error: BaseException) -> str:
    """The traceback without the calls that lead from here to a user's reward; whole where none but ours are in it."""
    if isinstance(error.__cause__, StopIteration):
        error = error.__cause__  # no future and no coroutine lets it out as itself
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(PACKAGE):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace or error.__traceback__))
