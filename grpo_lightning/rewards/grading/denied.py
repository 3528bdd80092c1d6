r"""Whether a text takes back the box that it gave: ``\boxed{72} is wrong``, ``The answer is not \boxed{72}``;
and words before a number or name that make it another one: ``before 1998``, ``unlike Apollo 11``, ``far from 7``.
"""

from __future__ import annotations

import re

MAX_AROUND = 300
"""Characters on either side of a box that may deny it."""

_NOT_THIS = re.compile(
    r"(?:\b(?:is|are|was|be|equals?|does|can)\s{1,3}(?:definitely\s|certainly\s|clearly\s)?not|n['’]t|\bcannot|\bnever)"
    r"(?:\s{1,3}(?:be|equal(?:\s{1,3}to)?|simply|just|exactly))?\s{0,3}:?\s{0,3}[$*]{0,4}(?:\\[(\[])?\s{0,3}$",
    re.IGNORECASE,
)
_FAULT = (
    r"(?:wrong|incorrect|mistaken|not\s(?:quite\s)?(?:the\s)?(?:final\s|correct\s|right\s)?(?:right|correct|answer)"
    r"|too\s(?:high|low|big|small|large|many|much|few)|impossible|extraneous|invalid|ruled\sout|rejected|(?:common\s)?mistake"
    r"|not\s(?:an?\s|the\s)?(?:valid\s|possible\s|real\s)?solution|not\s(?:valid|possible))"
)
_IS = r"(?:is|was|seems|looks|must\sbe|(?:would|can)\sbe|cannot\sbe|can['’]t\sbe)"
_IS_FAULTY = (
    rf"(?:{_IS}\s(?:also\s|clearly\s|actually\s|obviously\s)?(?:an?\s|the\s)?{_FAULT}"
    r"|(?:is|was)n['’]t\s(?:quite\s)?(?:the\s)?(?:right|correct|answer)|can(?:not|['’]t)\sbe\s(?:the\s)?(?:right|correct|answer)"
    r"|(?:does|do)(?:\snot|n['’]t)(?:\s(?:work|satisfy|hold|fit|count|apply|qualify)|(?=[.!\s]{0,3}$))"
    r"|['’]s\s(?:also\s|clearly\s|actually\s)?" + _FAULT + r")\b(?!\s(?:to|if|that|for|when|unless)\b)"
)
_WORDS_OF_DOUBT = r"no|wait|actually|hmm+|oops|sorry|hold\son|correction|on\ssecond\sthought"
_TURN = rf"(?:(?:but|{_WORDS_OF_DOUBT})\b[\s,.!?:;…—-]{{0,6}})"
_BEHIND = re.compile(
    r"[\s$.,;:!?*)\]\\-]{0,12}"
    rf"(?:{_IS_FAULTY}"
    rf"|(?:was|is)\smy\s(?:first|initial|earlier)\s(?:guess|thought|answer|attempt)"
    rf"|{_TURN}{{0,4}}(?:that|this|it|which|(?:the|my)\sanswer)(?:\s|(?=['’])){_IS_FAULTY}"
    rf"|{_TURN}{{0,4}}I\s(?:doubt\s(?:it|that|so)|do(?:n['’]t|\snot)\sthink\sso)\b"
    rf"|{_TURN}{{0,4}}I(?:['’]ve|\shave)?\s(?:just\s)?(?:made|see|found|notice)\s(?:an?|my|the)\s(?:\w{{1,15}}\s)?(?:mistake|error)\b)",
    re.IGNORECASE,
)
_CONTRAST = re.compile(
    r"[0-9][^.!?\n]{0,80}?([\s,(]{1,3}(?:instead\sof|rather\sthan|as\sopposed\sto|(?<=[,(]\s)not|(?<=[,(])not|and\snot|but\snot)"
    r"\s(?:just\s|only\s)?\$?[0-9][0-9.,]*(?:\s[a-z]{1,20})?[).!\s]{0,5})$"
)
"""A number, and at the end of the text another one that it is not."""
_TURNED = re.compile(
    rf"[\s$.,;:!?*)\]\\-]{{0,12}}(?:{_WORDS_OF_DOUBT})\b",
    re.IGNORECASE,
)


def denied_until(text: str, start: int, end: int) -> int | None:
    r"""Where the words end that deny the box from ``start`` to ``end``, those right before or behind it; None for none.

    Example:
        >>> text = r"\boxed{72} is wrong. It is 74."
        >>> text[denied_until(text, 0, 10):], denied_until(r"It is \boxed{72}, not 74.", 6, 16)
        ('. It is 74.', None)
    """
    if _NOT_THIS.search(text, max(0, start - MAX_AROUND), start):
        return end
    return denied_behind(text, end)


def denied_behind(text: str, end: int) -> int | None:
    """Where the words end that deny what ends at ``end``; None where none follow it."""
    found = _BEHIND.match(text, end, end + MAX_AROUND)
    return None if found is None else found.end()


def without_contrast(text: str) -> str:
    """The text without the other number that its last sentence names: ``It is 30 instead of 20``.

    Example:
        >>> without_contrast("It is 30 instead of 20."), without_contrast("It is 30, not 20"), without_contrast("It is not 20")
        ('It is 30', 'It is 30', 'It is not 20')
    """
    found = _CONTRAST.search(text, max(0, len(text) - MAX_AROUND))
    return text if found is None else text[: found.start(1)]


def turns_back(text: str, end: int) -> bool:
    """True where what follows the box begins with ``Wait`` or the like: an answer stated behind it is the one meant."""
    return _TURNED.match(text, end, end + MAX_AROUND) is not None


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
