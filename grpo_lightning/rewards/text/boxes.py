r"""The boxes of a text: ``\boxed{...}``, lists of them, and those that the text itself denies. Linear time."""

from __future__ import annotations

import re

from grpo_lightning.rewards.grading.braces import closing
from grpo_lightning.rewards.grading.denied import denied_until, turns_back
from grpo_lightning.rewards.text.concluded import concluding_clause

MAX_SPAN = 10_000
"""Characters within which a box must close."""
MAX_BETWEEN = 60
"""Characters that may stand between two boxes of one list."""
MAX_BOXES = 50
"""Boxes of one list."""

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)|(?<![\\A-Za-z])boxed(?=\{)")
_UNBRACED = re.compile(r"\s*(-?(?:[0-9]|\\[dt]?frac|\\sqrt)[^\s$,;]{0,40}?)(?=\.?(?:[\s$,;]|$))")
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;&*]|\\[()\[\]]|\\q?quad|\\[,;: ]|\\(?:text|mathrm)\{\s*,?\s*(?:and|or)\s*\}|\\lor|\\land|\band\b|\bor\b"
    r"|\b[A-Za-z](?:_\{?\w\}?)?\s*=)*"
)
_OR_ELSE = re.compile(
    r"[\s$*]{0,5}(?:\\[)\]])?[\s$*]{0,5}(?:[a-z]{1,20}\s{1,3}){0,2}[.,;]?\s{0,3}\(?\s{0,3}(?:or|alternatively|otherwise)\b,?"
    r"(?:\s{1,3}(?:maybe|perhaps|possibly|else|even|equivalently|it\s(?:could|may|might)\sbe|it\sis|it['’]s))?,?"  # noqa: RUF001
    r"[\s$*(:]{0,5}(?:\\[(\[])?[\s$*]{0,5}",
    re.IGNORECASE,
)
"""Between two guesses."""
_OR = re.compile(r"\bor\b|\\lor|alternatively|otherwise", re.IGNORECASE)
BLANK = "□"
_SAYS_NO = frozenset(["no", "false", "incorrect", "wrong"])


def boxed_answer(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}``, with that of the boxes before it that belong to the same list.

    Boxes belong together where only separators, "and", "or" and names of variables stand between them.

    Example:
        >>> boxed_answer(r"\boxed{1}, so \boxed{2} and $y = \boxed{3}$"), boxed_answer("none") is None
        ('2, 3', True)
        >>> boxed_answer(r"Either \boxed{1} or maybe \boxed{2}.")
        '1 or 2'
    """
    parts: list[str] = []
    joints: list[bool] = []
    after = len(text)
    for match in reversed(list(_BOX.finditer(text))[-MAX_BOXES:]):
        start = match.start()
        span = _content(text, start)
        if span is None:
            break
        content, between = text[span[0] : span[1]].strip(), text[span[1] + 1 : after]
        if span[1] > after:
            parts = [content]  # a box around the box
        elif parts and not _belong_together(between):
            break
        elif not content and not parts:
            return ""  # an empty last box takes back the one before it
        elif content not in parts:
            joints += [_OR.search(between) is not None] if parts else []
            parts.insert(0, content)
        after = start
    return (" or " if joints and all(joints) else ", ").join(parts) if parts else None


def without_denied_boxes(text: str) -> tuple[str, str | None]:
    r"""The text without the boxes that it denies, and what it says behind the last denial; None where it denies none.

    A box is denied by the words right before or behind it, or where ``Wait`` and the like begin a correction that states
    an answer of its own. Equal boxes before it go with it.

    Example:
        >>> without_denied_boxes(r"\boxed{72} is wrong. The answer is 74.")
        (' is wrong. The answer is 74.', '. The answer is 74.')
        >>> without_denied_boxes(r"\boxed{72}. Wait, is it 74? No.")[1] is None
        True
    """
    found = _boxes(text)
    denials = [(place, end) for place, box in enumerate(found) if (end := _denial(text, *box)) is not None]
    if found and turns_back(text, found[-1][1]) and concluding_clause(text[found[-1][1] :]) is not None:
        denials.append(
            (len(found) - 1, denials[-1][1] if denials and denials[-1][0] == len(found) - 1 else found[-1][1])
        )
    if not denials:
        return text, None
    last, end = denials[-1]
    denied = {found[place][2] for place, _ in denials}
    behind = text[end:]
    for start, stop, content in reversed(found[: last + 1]):
        text = text[:start] + text[stop:] if content in denied else text
    return text, behind


def without_boxes(text: str) -> str:
    r"""The text with ``BLANK`` for each of its last boxes."""
    for start, stop, _ in reversed(_boxes(text)):
        text = text[:start] + BLANK + text[stop:]
    return text


def _denial(text: str, start: int, end: int, content: str) -> int | None:
    word = re.sub(r"\\text|[{}.\s]", "", content).lower()
    return None if word in _SAYS_NO else denied_until(text, start, end)  # No. This is incorrect, because ...


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Where the last boxes begin and end, and what they hold; boxes in boxes left out."""
    found: list[tuple[int, int, str]] = []
    for match in list(_BOX.finditer(text))[-MAX_BOXES:]:
        span = _content(text, match.start())
        if span is not None and (not found or match.start() >= found[-1][1]):
            end = span[1] + (text[span[1] : span[1] + 1] == "}")
            found.append((match.start(), end, text[slice(*span)].strip()))
    return found


def _belong_together(between: str) -> bool:
    return len(between) <= MAX_BETWEEN and any(kind.fullmatch(between) for kind in (_BETWEEN_BOXES, _OR_ELSE))


def has_open_box(text: str) -> bool:
    """True where the last box never closes, as in a completion that was cut off."""
    last = max(text.rfind(box) for box in ("\\boxed", "\\fbox", "\\framebox"))
    if last < 0 or _content(text, last) is not None:
        return False
    rest = re.sub(r"\\[a-z]+\s*", "", text[last:], count=1)
    return not rest or rest.startswith("{")


def _content(text: str, start: int) -> tuple[int, int] | None:
    r"""Where the content of the box at ``start`` begins and ends; ``\boxed 5`` has no braces."""
    box = _BOX.match(text, start)
    opening = start if box is None else box.end()
    while opening < len(text) and text[opening] == " ":
        opening += 1
    if not text.startswith("{", opening):
        bare = _UNBRACED.match(text, opening)
        return None if bare is None else bare.span(1)
    end = closing(text, opening, opening + MAX_SPAN)
    return None if end is None else (opening + 1, end)
