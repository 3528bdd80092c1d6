"""Errors that need no traceback."""

from __future__ import annotations


class ExplainedError(Exception):
    """Ends a run with a message that says why and what to change: the command line shows that alone."""
