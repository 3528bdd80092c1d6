"""Where in a completion the final answer stands. Linear time on any input, however hostile."""

from __future__ import annotations

import re

from grpo_lightning.rewards.grading.braces import closing
from grpo_lightning.rewards.grading.last_value import last_value
from grpo_lightning.rewards.text.concluded import concluding_clause
from grpo_lightning.rewards.text.stated import stated_answer

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
FINAL = "####"

MAX_SPAN = 10_000
"""Characters within which a box must close, and at the end of a text in which a bare number is looked for."""
MAX_BETWEEN = 60
"""Characters that may stand between two boxes of one list."""
MAX_LINE = 200
"""Of a heading, and of tokens that end a text."""
MAX_BOXES = 50
"""Boxes of one list."""

_BOX = re.compile(r"\\(?:boxed|fbox)|(?<![\\A-Za-z])boxed(?=\{)")
_UNBRACED = re.compile(r"\s*(-?(?:[0-9]|\\[dt]?frac|\\sqrt)[^\s$,;]{0,40}?)(?=\.?(?:[\s$,;]|$))")
_END_OF_TEXT = re.compile(r"(?:\s*(?:<\|[a-z_|]{1,30}\|>|</s>|<eos>|<end_of_turn>))+\s*$")
_TAGS = re.compile(r"<(/?)(think|answer)>", re.IGNORECASE)
_OTHER_TAG = re.compile(r"</?[A-Za-z_]{1,30}>")
_HEADING = re.compile(
    r"[*_\s]*(?:step\s*[0-9]+|[0-9]{1,2}[.)]\s+[A-Za-z])|[^0-9$\\]*(?::|\s[^0-9$\\]*\w[*_:]*)$", re.IGNORECASE
)
_ONE_WORD_HEADING = re.compile(
    r"[*_\s]*(?:final|answer|conclusion|solution|result|summary|verification)[*_:]*$", re.IGNORECASE
)
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;&*]|\\[()\[\]]|\\q?quad|\\[,;: ]|\\(?:text|mathrm)\{\s*,?\s*(?:and|or)\s*\}|\\lor|\\land|\band\b|\bor\b"
    r"|\b[A-Za-z](?:_\{?\w\}?)?\s*=)*"
)


def strict_answer(text: str) -> str | None:
    """What stands between the only ``<answer>`` and the only ``</answer>``; None where the tags are not in order.

    Each think tag occurs at most once, in order, and before the answer; ``<think>`` may be missing, as it is where
    the chat template ends the prompt with it.

    Example:
        >>> strict_answer("<think>6 * 7</think><answer> 42 </answer>")
        '42'
        >>> strict_answer("<answer>41</answer><answer>42</answer>") is None
        True
    """
    positions: list[int] = []
    for tag, required in ((THINK_OPEN, False), (THINK_CLOSE, False), (ANSWER_OPEN, True), (ANSWER_CLOSE, True)):
        count = text.count(tag)
        if count > 1 or (required and count == 0):
            return None
        if count:
            positions.append(text.index(tag))
    if positions != sorted(positions) or (THINK_OPEN in text and THINK_CLOSE not in text):
        return None
    return text[positions[-2] + len(ANSWER_OPEN) : positions[-1]].strip()


def lenient_answer(text: str, prefer_formulas: bool = False) -> str | None:
    r"""The best guess at the answer: the last ``<answer>``, else the last ``\boxed{}``, else ``####``, else what is said.

    Only what follows the last ``</think>`` counts, where there is one; of a think block that never ends, only an
    ``<answer>`` in it. A last tag or box that never closes takes back the one before it, so there is no answer.

    Args:
        text: The completion.
        prefer_formulas: Without any of the three marks, and where ``stated_answer`` finds none in words, take the last
            formula in ``$...$``, ``\(...\)`` or ``\[...\]`` before the last number outside of one.

    Example:
        >>> lenient_answer(r"<think>1 + 1</think> so \boxed{42}."), lenient_answer("it costs $1,200.")
        ('42', '$1,200')
        >>> lenient_answer(r"\boxed{12}. Wait, \boxed{") is None
        True
    """
    text = _TAGS.sub(lambda tag: tag[0].lower(), text.rstrip())
    text = text[:-MAX_LINE] + _END_OF_TEXT.sub("", text[-MAX_LINE:])
    text = text.rpartition(THINK_CLOSE)[2]
    if has_open_tag(text) or has_open_box(text):
        return None
    tagged = _last_tagged(text)
    if tagged is not None:
        return tagged
    if THINK_OPEN in text:
        return None  # cut off while it thought
    for find in (boxed_answer, _marked):
        answer = find(text)
        if answer is not None:
            return answer
    end = _OTHER_TAG.sub(" ", text[-MAX_SPAN:])
    stated = stated_answer(end)
    return last_value(concluding_clause(end) or end, prefer_formulas) if stated is None else stated


def reference_answer(reference: str) -> str:
    r"""The answer inside a worked reference: after ``####`` (GSM8K), in the last ``\boxed{}`` (MATH), or all of it.

    Example:
        >>> reference_answer("48 / 2 = 24, 48 + 24 = 72\n#### 72"), reference_answer(" 72 ")
        ('72', '72')
    """
    return inner_answer(reference) or ""


def inner_answer(text: str) -> str | None:
    r"""The answer in what stands between tags: after its ``####``, in its boxes, or all of it; None if a box is open.

    Example:
        >>> inner_answer(r"It is $\boxed{2}$ or $\boxed{3}$."), inner_answer(r"\boxed{2")
        ('2, 3', None)
    """
    if has_open_box(text):
        return None
    marked = after_final_mark(text)
    if marked is not None:
        boxed = boxed_answer(marked)
        return marked if boxed is None else boxed
    boxed = boxed_answer(text)
    return text.strip() if boxed is None else boxed


def boxed_answer(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}``, with that of the boxes before it that belong to the same list.

    Boxes belong together where only separators, "and", "or" and names of variables stand between them.

    Example:
        >>> boxed_answer(r"\boxed{1}, so \boxed{2} and $y = \boxed{3}$"), boxed_answer("none") is None
        ('2, 3', True)
    """
    parts: list[str] = []
    after = len(text)
    for match in reversed(list(_BOX.finditer(text))[-MAX_BOXES:]):
        start = match.start()
        span = _content(text, start)
        if span is None:
            break
        content, between = text[span[0] : span[1]].strip(), text[span[1] + 1 : after]
        if span[1] > after:
            parts = [content]  # a box around the box
        elif parts and (len(between) > MAX_BETWEEN or not _BETWEEN_BOXES.fullmatch(between)):
            break
        elif not content and not parts:
            return ""  # an empty last box takes back the one before it
        elif content not in parts:
            parts.insert(0, content)
        after = start
    return ", ".join(parts) if parts else None


def has_open_box(text: str) -> bool:
    """True where the last box never closes, as in a completion that was cut off."""
    last = max(text.rfind(box) for box in ("\\boxed", "\\fbox"))
    if last < 0 or _content(text, last) is not None:
        return False
    rest = text[last:].lstrip("\\bdefox").lstrip()
    return not rest or rest.startswith("{")


def has_open_tag(text: str) -> bool:
    """True where an answer was given, and another one was begun and not ended."""
    closed = text.rfind(ANSWER_CLOSE)
    return closed >= 0 and text.rfind(ANSWER_OPEN) > closed


def after_final_mark(text: str) -> str | None:
    """What follows the last ``####`` on its line, the mark of GSM8K's answers."""
    _, mark, after = text.rpartition(FINAL)
    return after.strip().partition("\n")[0].strip() if mark else None


def _marked(text: str) -> str | None:
    """What follows the last ``####``, unless that begins a Markdown heading with text below it."""
    _, mark, after = text.rpartition(FINAL)
    line, _, below = after.strip().partition("\n")
    if mark and below.strip() and len(line) <= MAX_LINE and (_HEADING.match(line) or _ONE_WORD_HEADING.match(line)):
        return None
    return after_final_mark(text)


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


def _last_tagged(text: str) -> str | None:
    end = text.rfind(ANSWER_CLOSE)
    start = text.rfind(ANSWER_OPEN, 0, end) if end >= 0 else -1
    return text[start + len(ANSWER_OPEN) : end].strip() if start >= 0 else None
