"""Words before a number or name that make it another one: ``before 1998``, ``unlike Apollo 11``, ``far from 7``."""

from __future__ import annotations

import re

_COMPARED = r"(?:less|more|fewer|greater|higher|lower|rather|other) than(?: or equal to)?"
_DENIED = r"(?:not|never|cannot|no longer|unequal|\w+n['’]t)(?: (?:be|have been|equal|to|exactly))*"
_AWAY = (
    r"up to|(?:different|distinct|far|away) from|close to|short of|unlike|all but|anything but|everything except"
    r"|exceed(?:s|ing)?|just (?:under|over|below|above)"
)
CHANGES = re.compile(rf"\b(?:{_DENIED}|{_COMPARED}|{_AWAY})$", re.IGNORECASE)
"""At the end of what stands before a number."""
_NEXT_TO = re.compile(
    r"\b(?:before|after|since|until|till|beyond|prior to|following|preceding|within)(?: the(?: year)?)?$", re.IGNORECASE
)
APART = frozenset(
    "before after since until till beyond prior following preceding unlike near outside besides versus".split()
)
"""Words that make what follows them a neighbour of the answer."""


def change_before(before: str, behind: str) -> re.Match[str] | None:
    """The words at the end of ``before`` that make the number behind them another value; None where there are none.

    ``after 7`` is another number, ``after 7 days`` counts days.

    Example:
        >>> change_before("it is far from", "")[0], change_before("after", " days"), change_before("after", ".")[0]
        ('far from', None, 'after')
    """
    before = before.rstrip()
    found = CHANGES.search(before)
    if found is None and re.search(r"\w", behind) is None:
        found = _NEXT_TO.search(before)
    return found
