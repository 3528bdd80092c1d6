"""Words before a number or name that make it another one: ``before 1998``, ``unlike Apollo 11``, ``far from 7``."""

from __future__ import annotations

import re

_COMPARED = r"rather [^.,]{1,20} than|(?:less|more|fewer|greater|higher|lower|rather|other) than(?: or equal to)?"
_COMPARED_ABROAD = r"(?:más|menos|plus|moins|mais|più|meno) d[ei]|(?:mehr|weniger|größer|kleiner) als"
_CARRIED = (
    r"be|been|have|has|equals?|to|exactly|say|think|believe|claim|conclude|mean|that|it|this|is|are|was|the|an?|my|our|final|correct"
    r"|right|answer|result|value|number|total|case|true|possible|likely|es|son|ist|sind|é|è"
)
"""Words that carry a denial on to the number: ``I do not think that the answer is``."""
_DENIED = (
    r"(?:no way|nobody|no one|fails?(?= to\b)|not|never|cannot|no longer|unequal|\w+n['’]t|(?<!no )(?<!without a )doubt|doubtful|unlikely|impossible|false|untrue|wrong|incorrect"
    rf"|nicht|pas|niet|не|no(?= es\b| son\b)|n[ãa]o(?= é)|non(?= è))(?: (?:{_CARRIED}))*"
)
_AWAY = (
    r"up to|(?:different|distinct|far|away) from|differ(?:s|ed)? from|close to|short of|(?:any|no)where near|unlike|all but|anything but"
    r"|everything except|exceed(?:s|ing)?|instead of|as opposed to|if (?:it|this|that|the answer) (?:were|was)"
    r"|(?:is|are|was|were|be|has|have|had|takes?|took|costs?|lasts?|lasted|weighs?|just|slightly|somewhat|well|far|a (?:bit|little)) (?:under|over|below|above)"
)
_OF = (
    r"(?:(?<!by a )factor|multiple|divisor|square|cube|square root|cube root|reciprocal|inverse|opposite|negative|half|third"
    r"|quarter)s? of|(?:divisible|divided|multiplied) by|twice|thrice|double|triple"
)
"""What makes the number behind it the beginning of a calculation."""
CHANGES = re.compile(
    rf"\b(?:{_DENIED}|{_COMPARED}|{_COMPARED_ABROAD}|{_AWAY}|{_OF})$|(?:[0-9]\s?%|\bpercent|[0-9]/[0-9]+) of$",
    re.IGNORECASE,
)
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
    before = before.rstrip(" \t")  # a line above denies nothing
    found = CHANGES.search(before)
    if found is None and re.search(r"\w", behind) is None:
        found = _NEXT_TO.search(before)
    return found
