"""Tracebacks of rewards as their authors want to read them: from the reward's own code on."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

PACKAGE = str(Path(__file__).parents[2]) + os.sep


def traceback_of(error: BaseException) -> str:
    """The traceback without the calls that lead from here to a user's reward; whole where none but ours are in it."""
    if isinstance(error.__cause__, StopIteration):
        error = error.__cause__  # no future and no coroutine lets it out as itself
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(PACKAGE):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace or error.__traceback__))
