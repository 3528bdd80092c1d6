"""A text that is nothing but one value, whatever numbers it is made of: ``1 h 30 min``, ``1 234,50 €``."""

from __future__ import annotations

from grpo_lightning.rewards.grading.calendar import moment
from grpo_lightning.rewards.grading.denied import denied_behind
from grpo_lightning.rewards.grading.notation import tidy
from grpo_lightning.rewards.grading.numeric import last_number_span
from grpo_lightning.rewards.grading.quantities import quantity

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
