"""What a model may give the arguments of tools as people write them for TRL."""

from __future__ import annotations

from typing import Literal, Optional

import pytest

from grpo_lightning.environments import ToolMistake
from grpo_lightning.environments.tools import checked_arguments, tool_of


def search(
    query: str,
    limit: Optional[int] = None,  # noqa: UP045  # as it is written
    order: Literal["new", "old"] | None = None,
    tags: list[str] | None = None,
    nullable: bool = False,
) -> str:
    """Searches.

    Args:
        query: What for.
        limit: Of results.
        order: Of results.
        tags: All of which a result has.
        nullable: A name like any other.
    """
    return query


@pytest.mark.parametrize(
    "given",
    [
        {"limit": None},
        {"limit": 3},
        {"order": None},
        {"order": "old"},
        {"tags": None},
        {"tags": ["a"], "nullable": True},
    ],
)
def test_an_argument_that_may_be_none_takes_null_and_what_else_its_type_allows(given):
    assert checked_arguments(tool_of(search), {"query": "é", **given}) == {"query": "é", **given}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"query": None}, "argument query: None is not of type 'string'"),
        ({"query": "a", "limit": "3"}, "argument limit: '3' is not of type 'integer', 'null'"),
        ({"query": "a", "order": "best"}, "argument order: 'best' is not one of ['new', 'old', None]"),
        ({"query": "a", "tags": [None]}, "argument tags[0]: None is not of type 'string'"),
        ({"query": "a", "nullable": None}, "argument nullable: None is not of type 'boolean'"),
    ],
)
def test_what_its_type_does_not_allow_is_told_to_the_model(given, told):
    with pytest.raises(ToolMistake) as caught:
        checked_arguments(tool_of(search), given)
    assert told in str(caught.value)
