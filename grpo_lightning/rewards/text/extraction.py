"""Where in a completion the final answer stands. Linear time on any input, however hostile."""

from __future__ import annotations

from grpo_lightning.rewards.text.numeric import last_number_text

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
BOXED = "\\boxed"
FINAL = "####"

MAX_SPAN = 10_000
"""Characters within which a box must close, and at the end of a text in which a bare number is looked for."""


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


def lenient_answer(text: str) -> str | None:
    r"""The best guess at the answer: the last ``<answer>``, else the last ``\boxed{}``, else ``####``, else a number.

    Only what follows the last ``</think>`` counts, where there is one.

    Example:
        >>> lenient_answer(r"<think>1 + 1</think> so \boxed{42}."), lenient_answer("it costs $1,200.")
        ('42', '$1,200')
    """
    text = text.rpartition(THINK_CLOSE)[2]
    for find in (_last_tagged, last_boxed, after_final_mark, _last_number):
        answer = find(text)
        if answer is not None:
            return answer
    return None


def reference_answer(reference: str) -> str:
    r"""The answer inside a worked reference: after ``####`` (GSM8K), in the last ``\boxed{}`` (MATH), or all of it.

    Example:
        >>> reference_answer("48 / 2 = 24, 48 + 24 = 72\n#### 72"), reference_answer(" 72 ")
        ('72', '72')
    """
    marked = after_final_mark(reference)
    boxed = last_boxed(reference) if marked is None else None
    return next(answer for answer in (marked, boxed, reference.strip()) if answer is not None)


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}``, braces balanced; None where there is none or it never closes."""
    start = text.rfind(BOXED)
    if start < 0:
        return None
    opening = start + len(BOXED)
    while opening < len(text) and text[opening] == " ":
        opening += 1
    if not text.startswith("{", opening):
        return None
    depth = 0
    for position in range(opening, min(len(text), opening + MAX_SPAN)):
        escaped = text[position - 1] == "\\"
        if text[position] == "{" and not escaped:
            depth += 1
        elif text[position] == "}" and not escaped:
            depth -= 1
            if depth == 0:
                return text[opening + 1 : position].strip()
    return None


def after_final_mark(text: str) -> str | None:
    """What follows the last ``####`` on its line, the mark of GSM8K's answers."""
    _, mark, after = text.rpartition(FINAL)
    return after.strip().partition("\n")[0].strip() if mark else None


def _last_number(text: str) -> str | None:
    return last_number_text(text[-MAX_SPAN:])


def _last_tagged(text: str) -> str | None:
    end = text.rfind(ANSWER_CLOSE)
    start = text.rfind(ANSWER_OPEN, 0, end) if end >= 0 else -1
    return text[start + len(ANSWER_OPEN) : end].strip() if start >= 0 else None
