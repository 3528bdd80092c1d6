"""Python's garbage collector looks at nothing that imports have made, which is nearly all that a process of tests holds.

A full collection of a process that has imported torch, transformers and vLLM takes half a second to a second; an engine
of vLLM asks for nine of them from its start to its end. Everything that exists at a call of ``freeze_imports`` is left
out from then on: call it between tests.
"""

from __future__ import annotations

import atexit
import gc
import sys

MANY = 100
"""New modules that are worth a collection."""
_freeze, _unfreeze = gc.freeze, gc.unfreeze
_seen = 0


def _nothing() -> None:
    """In place of both: vLLM freezes what its engine has made and thaws everything at its end, the imports too."""


def freeze_imports() -> None:
    """Takes what is alive out of the collector's sight, where many modules have been imported since the last call."""
    global _seen
    if len(sys.modules) - _seen < MANY:
        return
    if not _seen:
        gc.freeze = gc.unfreeze = _nothing
        atexit.register(_unfreeze)  # nanobind calls what is never collected leaked
    gc.collect()
    _freeze()
    _seen = len(sys.modules)
