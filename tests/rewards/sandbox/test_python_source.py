"""Source is parsed whatever else parses at the same time."""

from __future__ import annotations

import ast
import gc

import pytest

from grpo_lightning.rewards.sandbox.python_source import parsed, parsed_expression

SOURCE = "\n".join(f"a{i} = [{i}, (b, {{c: d}})]" for i in range(50))


class ParsesAtItsEnd:
    """Garbage whose finalizer parses, as one does that logs a traceback."""

    ended = 0

    def __init__(self):
        self.itself = self

    def __del__(self):
        ast.parse("x")
        ParsesAtItsEnd.ended += 1


@pytest.mark.parametrize(
    "parse", [parsed, lambda source: parsed_expression(f"[{source}]")], ids=["module", "expression"]
)
def test_a_finalizer_that_parses_in_between_changes_nothing(parse):
    source = SOURCE if parse is parsed else ", ".join(f"[{i}, (b, {{c: d}})]" for i in range(50))
    expected = ast.dump(parse(source))
    before, thresholds = ParsesAtItsEnd.ended, gc.get_threshold()
    try:
        ParsesAtItsEnd()
        gc.set_threshold(1, 1, 1)
        tree = parse(source)  # Python 3.11.7's ast.parse: SystemError
    finally:
        gc.set_threshold(*thresholds)
    assert ast.dump(tree) == expected
    assert ParsesAtItsEnd.ended > before


@pytest.mark.parametrize("source", ["a = = 1", "a\0", "(" * 5000])
def test_what_is_wrong_with_the_source_is_said(source):
    with pytest.raises((SyntaxError, ValueError, MemoryError)):
        parsed(source)
