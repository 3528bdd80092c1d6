r"""The claims of one answer: ``74\n#### 72`` makes two, of which each has to be right."""

from __future__ import annotations

import re

from grpo_lightning.rewards.grading.last_value import last_value
from grpo_lightning.rewards.text.boxes import BLANK, boxed_answer, has_open_box, without_boxes, without_denied_boxes
from grpo_lightning.rewards.text.concluded import concluding_clause
from grpo_lightning.rewards.text.extraction import FINAL, MAX_SPAN, answer_behind

_BARE = re.compile(
    r"[\s$*]{0,5}(?:\\[(\[])?\s?((?:-\s?)?\\?[$€£]?[0-9][0-9,]{0,40}(?:\.[0-9]{1,40})?(?:\s?/\s?[0-9]{1,20})?\\?%?)\s?(?:\\[)\]])?[\s$*,;]{0,5}"
)
"""A line that is nothing but a number; ``3.`` may be the marker of a list."""
_BEFORE_BLANK = re.compile(rf"[,;:]\s{{0,3}}[$\\(\[]{{0,2}}{BLANK}.{{0,300}}$", re.DOTALL)


def claims_of(answer: str) -> list[str]:
    r"""The answer as it is, and what it states beside its box or mark; a box that it denies is no claim.

    Example:
        >>> claims_of("74\n#### 72"), claims_of("48 + 24 = 72\n#### 72"), claims_of(r"The answer is 74. \boxed{72}")
        (['74\n#### 72', '74'], ['48 + 24 = 72\n#### 72'], ['The answer is 74. \\boxed{72}', '74'])
        >>> claims_of(r"\boxed{72} is wrong. The answer is 74."), claims_of("72")
        (['74'], ['72'])
    """
    if len(answer) > MAX_SPAN or (FINAL not in answer and "box" not in answer) or has_open_box(answer):
        return [answer]
    kept, behind = without_denied_boxes(answer)
    if behind is not None:
        return [answer_behind(behind) or boxed_answer(kept) or ""]
    before, mark, _ = answer.rpartition(FINAL)
    boxed = boxed_answer(before) if mark else None
    outside = without_boxes(before + BLANK if mark else answer)
    return list(dict.fromkeys([answer, *([] if boxed is None else [boxed]), *_stated_in(outside)]))


def _stated_in(outside: str) -> list[str]:
    """The number alone on its line beside the blank of a box, and the answer of the last ``The answer is``."""
    lines = [line for line in outside.splitlines() if line.strip()]
    blank = [place for place, line in enumerate(lines) if BLANK in line]
    near = lines[max(0, blank[0] - 1) : blank[-1] + 2] if blank else []
    stated = [bare[1] for line in near if (bare := _BARE.fullmatch(line.replace(BLANK, ""))) is not None]
    clause = concluding_clause(outside)
    clause = clause and _BEFORE_BLANK.sub("", clause)
    if clause is not None and BLANK not in clause and (value := last_value(clause, prefer_formulas=True)) is not None:
        stated.append(value)
    return stated
