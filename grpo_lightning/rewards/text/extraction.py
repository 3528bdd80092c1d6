"""Where in a completion the final answer stands. Linear time on any input, however hostile."""

from __future__ import annotations

import json
import re

from grpo_lightning.rewards.grading.calendar import moment
from grpo_lightning.rewards.grading.denied import denied_behind, without_contrast
from grpo_lightning.rewards.grading.last_value import last_value
from grpo_lightning.rewards.grading.notation import tidy
from grpo_lightning.rewards.grading.numeric import in_ascii, last_number_span
from grpo_lightning.rewards.grading.quantities import quantity
from grpo_lightning.rewards.text.boxes import boxed_answer, has_open_box, without_denied_boxes
from grpo_lightning.rewards.text.concluded import concluding_clause
from grpo_lightning.rewards.text.stated import stated_answer

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
FINAL = "####"

MAX_SPAN = 10_000
"""Characters at the end of a text in which a bare number is looked for."""
MAX_DENIED = 3
"""Numbers at the end of a text that are denied one after another."""
MAX_LINE = 200
"""Of a heading, and of tokens that end a text."""
_END_OF_TEXT = re.compile(r"(?:\s*(?:<\|[a-z_|]{1,30}\|>|</s>|<eos>|<end_of_turn>))+\s*$")
_TAGS = re.compile(r"<(/?)(think|answer)>", re.IGNORECASE)
_OTHER_TAG = re.compile(r"</?[A-Za-z_]{1,30}>")
_HEADING = re.compile(
    r"[*_\s]*(?:step\s*[0-9]+|[0-9]{1,2}[.)]\s+[A-Za-z])|[^0-9$\\]*(?::|\s[^0-9$\\]*\w[*_:]*)$", re.IGNORECASE
)
_ONE_WORD_HEADING = re.compile(
    r"[*_\s]*(?:final|answer|conclusion|solution|result|summary|verification)[*_:]*$", re.IGNORECASE
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
    text, behind = without_denied_boxes(text)
    found = None if behind is None else answer_behind(behind)
    if found is None:
        found = next((answer for find in (boxed_answer, _marked) if (answer := find(text)) is not None), None)
    return found if found is not None or behind is not None else _unmarked(text, prefer_formulas)


def answer_behind(behind: str) -> str | None:
    """What is said behind a denied box to be the answer; None where nothing is."""
    if (boxed := boxed_answer(behind)) is not None:
        return boxed
    clause = concluding_clause(behind[-MAX_SPAN:])
    return (
        last_value(clause, prefer_formulas=True)
        if clause is not None
        else stated_answer(behind[-MAX_SPAN:].lstrip(" .,;"))
    )


def _unmarked(text: str, prefer_formulas: bool) -> str | None:
    end = in_ascii(_OTHER_TAG.sub(" ", text[-MAX_SPAN:]))
    for find in (json_answer, stated_answer, whole_value):
        if (found := find(end)) is not None:
            return found
    return last_value(concluding_clause(end) or _undenied(end), prefer_formulas)


def _undenied(text: str) -> str:
    """The text up to its last number that is not denied, as in ``7 is wrong`` and ``8 rather than 7``."""
    text = without_contrast(text)
    for _ in range(MAX_DENIED):
        number = last_number_span(text)
        if number is None or denied_behind(text, number[1]) is None:
            break
        text = text[: number[0]]
    return text


def inner_answer(text: str) -> str | None:
    r"""The answer in what stands between tags: after its ``####``, in its boxes, or all of it; None if a box is open.

    Example:
        >>> inner_answer(r"It is $\boxed{2}$ or $\boxed{3}$."), inner_answer(r"\boxed{2")
        ('2 or 3', None)
    """
    if has_open_box(text):
        return None
    marked = after_final_mark(text)
    if marked is not None:
        boxed = boxed_answer(marked)
        return marked if boxed is None else boxed
    boxed = boxed_answer(text)
    return text.strip() if boxed is None else boxed


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


def _last_tagged(text: str) -> str | None:
    end = text.rfind(ANSWER_CLOSE)
    start = text.rfind(ANSWER_OPEN, 0, end) if end >= 0 else -1
    return text[start + len(ANSWER_OPEN) : end].strip() if start >= 0 else None


JSON_KEYS = ("answer", "final_answer", "result", "value", "solution")
"""Of the answer, the first one found; letters' case, spaces and dashes do not count."""
MAX_OBJECT = 5_000
"""Characters of an object."""
MAX_NESTED = 20
"""Opening braces that are tried, from the last one."""
_FENCE = " \t\r\n`"


def json_answer(text: str) -> str | None:
    """What the last object of the text has as its answer; None where the text does not end with such an object.

    Example:
        >>> json_answer('{"reasoning": "3 * 4", "Final Answer": 12}'), json_answer("{12}"), json_answer('{"steps": 3}')
        ('12', None, None)
    """
    text = text.rstrip(_FENCE)[-MAX_OBJECT:]
    start = len(text) if text.endswith("}") else 0
    for _ in range(MAX_NESTED):
        start = text.rfind("{", 0, start)
        if start < 0:
            break
        try:
            found = json.loads(text[start:], parse_float=str, parse_int=str, strict=False)
        except (ValueError, RecursionError):
            continue
        return _answer(found) if isinstance(found, dict) else None
    return None


def _answer(found: dict[str, object]) -> str | None:
    plain = {key.strip().lower().replace(" ", "_").replace("-", "_"): value for key, value in found.items()}
    given = next((plain[key] for key in JSON_KEYS if plain.get(key)), None)
    if isinstance(given, list) and all(isinstance(item, str) for item in given):
        given = ", ".join(given)
    return given if isinstance(given, str) else None


MAX_WHOLE = 40
"""Characters of a text that is nothing but a value."""


def whole_value(text: str) -> str | None:
    """The text where all of it is one quantity, date or time; None for sentences, formulas and long texts.

    Example:
        >>> whole_value("1 h 30 min"), whole_value("The 4th of July."), whole_value("It is 4"), whole_value("2 + 2")
        ('1 h 30 min', 'The 4th of July.', None, None)
    """
    text = text.strip()
    if "\n" in text or len(text) > MAX_WHOLE or text.startswith("- "):  # a list of one
        return None
    number = last_number_span(text)
    if number is not None and denied_behind(text, number[1]) is not None:
        return None
    plain = tidy(text)
    return text if quantity(plain) is not None or moment(plain) is not None else None
