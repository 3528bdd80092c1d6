"""Braces and brackets in a text: where they close, what they hold, where a text splits outside of them. Linear time."""

from __future__ import annotations

import re

OPENING, CLOSING = "([{⦃", ")]}⦄"
PAIRS = dict(zip(OPENING, CLOSING, strict=True))

MAX_NESTED = 40
"""Brackets in brackets that a formula may have."""

_PRIMED = re.compile(r"[0-9]\s?'")
_ENDLESS = re.compile(r"[0-9]{200}")

WRAPPERS = (
    "text|textbf|textit|textrm|textnormal|textsf|texttt|mathrm|mathbf|mathit|mathsf|mathtt|mathnormal|mbox|hbox|fbox"
    "|boxed|operatorname|emph|underline|bm|boldsymbol|bold|rm|ensuremath|textup|mathop|displaystyle"
)
_WRAPPER = re.compile(rf"\\(?:{WRAPPERS})\*?\s*\{{")
_IGNORED = re.compile(
    r"\\(?:tag|label|color|textcolor|colorbox|phantom|hspace|vspace)\*?\{[^{}]*\}|\{\\(?:rm|bf|it|sf)\s+([^{}]*)\}"
)


def closing(text: str, opening: int, end: int | None = None) -> int | None:
    r"""Where the brace at ``opening`` closes, ``\{`` and ``\}`` not counted; None where it never does.

    Example:
        >>> closing("{a{b}c} d}", 0), closing("{a", 0)
        (6, None)
    """
    depth = 0
    for position in range(opening, len(text) if end is None else min(end, len(text))):
        char = text[position]
        if char not in "{}" or (position and text[position - 1] == "\\"):
            continue
        depth += 1 if char == "{" else -1
        if depth == 0:
            return position
    return None


def without_commands(text: str) -> str:
    r"""The text with ``\text{...}`` and the like opened, a space on either side.

    Example:
        >>> without_commands(r"5\text{ m}").split(), without_commands(r"\mathrm{lcm}(2,3)").strip()
        (['5', 'm'], 'lcm (2,3)')
    """
    text = _IGNORED.sub(lambda match: match[1] or "", text)
    pieces: list[str] = []
    position = 0
    ends: set[int] = set()
    for match in _WRAPPER.finditer(text):
        end = closing(text, match.end() - 1)
        if end is None:
            break
        pieces += [_kept(text, position, match.start(), ends), " "]
        position = match.end()
        ends.add(end)
    return "".join([*pieces, _kept(text, position, len(text), ends)])


def _kept(text: str, start: int, stop: int, ends: set[int]) -> str:
    return "".join(" " if place in ends else text[place] for place in range(start, stop))


def with_groups(text: str, mark: str) -> str:
    """Braces instead of parentheses right behind ``mark``: ``x^(1/2)`` becomes ``x^{1/2}``.

    Example:
        >>> with_groups("2^((x)+1)", "^"), with_groups("^(", "^")
        ('2^{(x)+1}', '^(')
    """
    start = text.find(mark)
    while start >= 0:
        opening = start + len(mark)
        while opening < len(text) and text[opening] == " ":
            opening += 1
        if text.startswith("(", opening):
            end = match_of(text, opening)
            if end is None:
                break
            inner = text[opening + 1 : end]
            text = f"{text[:start]}{mark}{{{inner}}}{text[end + 1 :]}"
        start = text.find(mark, start + len(mark))
    return text


def match_of(text: str, opening: int) -> int | None:
    """Where the bracket at ``opening`` closes, counting all kinds alike, as half-open intervals need."""
    depth = 0
    for position in range(opening, len(text)):
        if text[position] in OPENING:
            depth += 1
        elif text[position] in CLOSING:
            depth -= 1
            if depth == 0:
                return position
    return None


def wrapped(text: str) -> str | None:
    """What stands in the brackets that hold all of the text; None where none do.

    Example:
        >>> wrapped("(1, 2)"), wrapped("(1)(2)")
        ('1, 2', None)
    """
    if len(text) < 2 or text[0] not in OPENING or text[-1] not in CLOSING:
        return None
    return text[1:-1].strip() if match_of(text, 0) == len(text) - 1 else None


def is_closed(text: str) -> bool:
    """True where every brace of the text closes."""
    depth = 0
    for char in text.replace("\\{", "").replace("\\}", ""):
        depth += (char == "{") - (char == "}")
        if depth < 0:
            return False
    return depth == 0


def is_readable(formula: str) -> bool:
    """False for brackets that do not pair or are nested deeply and endless numbers, on which a parser may take minutes.

    Neither is ``7'``, of which a parser drops the prime.

    Example:
        >>> is_readable("(x + [1])"), is_readable("(x"), is_readable("(" * 50 + ")" * 50)
        (True, False, False)
    """
    if _ENDLESS.search(formula) or _PRIMED.search(formula):
        return False
    depth = 0
    for char in formula:
        depth += (char in OPENING) - (char in CLOSING)
        if not 0 <= depth <= MAX_NESTED:
            return False
    return depth == 0


def split_outside(text: str, separators: re.Pattern[str]) -> list[str]:
    """The parts of the text between separators that stand in no bracket.

    Example:
        >>> split_outside("(1, 2), [3, 4)", re.compile(","))
        ['(1, 2)', ' [3, 4)']
    """
    parts, start = [], 0
    for match in _matches_outside(text, separators):
        parts.append(text[start : match.start()])
        start = match.end()
    return [*parts, text[start:]]


def separators_outside(text: str, separators: re.Pattern[str]) -> list[str]:
    """What stands between the parts of ``split_outside``.

    Example:
        >>> separators_outside("(1, 2); 3, 4", re.compile("[,;]"))
        [';', ',']
    """
    return [match.group() for match in _matches_outside(text, separators)]


def _matches_outside(text: str, separators: re.Pattern[str]) -> list[re.Match[str]]:
    depths, depth = [], 0
    for char in text:
        depth += (char in OPENING) - (char in CLOSING)
        depths.append(depth)
    return [match for match in separators.finditer(text) if match.end() > match.start() and depths[match.start()] <= 0]
