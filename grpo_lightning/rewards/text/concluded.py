"""The clause that states a number or formula as the answer: ``The final answer is $42$``, whatever is said after it."""

from __future__ import annotations

import re

from grpo_lightning.rewards.grading.denied import change_before
from grpo_lightning.rewards.grading.notation import MATH_SPAN

MAX_CLAUSE = 300
"""Characters; what goes on for longer is no statement of an answer."""
_LEAD = re.compile(
    r"(?:\b(?:the|my|our|final|correct|right)\s{1,3}(?:(?:final|correct|right)\s{1,3})?|^[ \t*_#>]{0,20})"
    r"answer[*_]{0,3}\s{0,3}(?:is|should be|must be|:|=)[*_:]{0,4}\s{0,5}(?:(?:therefore|thus|simply|just|equal to|exactly)\s{1,3})?[*_]{0,3}",
    re.IGNORECASE | re.MULTILINE,
)
_VALUE = re.compile(r"[-+]?\s?\\?[$€£¥]?\s?-?(?:[0-9]|\.[0-9]|\\[dt]?frac|\\sqrt)|(?:minus|negative)\s", re.IGNORECASE)
_ENUMERATED = re.compile(r"[0-9]{1,2}[.)]\s+\S")
_END = re.compile(
    r"[.!?;](?=[*_]*(?:\s|$))|\n|\s\((?!\s*(?:or|mod|not|base)\b)(?=[^()\n]*[A-Za-z]{2})|,?\s+i\.e\.|,?\s+(?:where|because|since|when|if"
    r"|with|for|which|using|while|as)\s"
    r"|(?<=[a-z])\s(?:altogether|over|during|across|throughout|among|in\s(?:total|all|the|each|every|an?|one))\s",
    re.IGNORECASE,
)
_CALCULATION = re.compile(r"[0-9)][^\n=]*=")
_TAKEN_BACK = re.compile(
    r"\b(?:wait|actually|incorrect|wrong|mistake|correction|oops|sorry|instead|but|however|no)\b", re.IGNORECASE
)


def concluding_clause(text: str) -> str | None:
    """The last ``answer is`` or ``Answer:`` with the value right behind it; None where none has one, or it is taken back.

    Example:
        >>> concluding_clause("The answer is 42. It took 5 steps."), concluding_clause("**Answer: 42** (3 boxes of 14)")
        ('The answer is 42', '**Answer: 42**')
        >>> concluding_clause("The answer is 42. No, it is 43."), concluding_clause("I doubt that the answer is 42.")
        (None, None)
    """
    leads = list(_LEAD.finditer(text))
    if not leads:
        return None
    start, behind = leads[-1].start(), leads[-1].end()
    if change_before(text[max(0, start - MAX_CLAUSE) : start], "x") is not None:
        return None
    formula = MATH_SPAN.match(text, behind)
    is_list = "\n" in leads[-1][0] and _ENUMERATED.match(text, behind) is not None
    if formula is None and (is_list or _VALUE.match(text, behind) is None):
        return None
    value_end = behind + 1 if formula is None else formula.end()
    found = _END.search(text, value_end, value_end + MAX_CLAUSE)
    end = found.start() if found is not None else len(text)
    if end - value_end > MAX_CLAUSE or text[end : end + 1] == "?" or _TAKEN_BACK.search(text, end):
        return None
    is_calculation = formula is None and _CALCULATION.search(text, behind, end) is not None
    return None if is_calculation else text[start:end].strip()
