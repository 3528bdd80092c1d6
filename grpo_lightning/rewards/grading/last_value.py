"""The last value of a text without any mark: a formula, or a number with all that belongs to it."""

from __future__ import annotations

import re

from grpo_lightning.rewards.grading.amounts import end_of_amount, whole_compound
from grpo_lightning.rewards.grading.braces import CLOSING, OPENING
from grpo_lightning.rewards.grading.calendar import date_at
from grpo_lightning.rewards.grading.denied import change_before
from grpo_lightning.rewards.grading.joined_numbers import end_of_alternative, start_of_changed_name, start_of_joined
from grpo_lightning.rewards.grading.labels import whole_label, without_labels
from grpo_lightning.rewards.grading.notation import CALCULATOR, MATH_SPAN
from grpo_lightning.rewards.grading.numeric import last_number_span
from grpo_lightning.rewards.grading.prose import words_in_sentence
from grpo_lightning.rewards.grading.signs import with_powers, with_signs
from grpo_lightning.rewards.grading.symbols import FUNCTIONS

MAX_RUN = 500
"""Characters on either side of a number that may belong to it; what is longer is no answer."""
_OPERATORS = "+-*/^<>≤≥≠±×·÷≈√:"
_JOIN = re.compile(rf"(?:=/=|<>|[<>!/~]=|[{re.escape(_OPERATORS)}]|\\[a-z]+)$")
_EQUALS = re.compile(r"(?<![<>!=:/~\\])=(?![=/])")
_OPERAND = re.compile(r"[\w)\]}⦄|.,°%!'\\(\[{√^+*/-]*[0-9)\]}⦄|!]|\(?-?[0-9.]*[A-Za-z]\)?|\\[a-z]+")
_JOINED = re.compile(r"(?:^|\s)(\S*[0-9])\s+(?:or|and)$")
_FUNCTION = re.compile(rf"(?:\b(?:{'|'.join(FUNCTIONS)})|\b(?:log|sin|cos|tan)[_^]\S{{1,10}})$")
_TERM = r"(?:[0-9.]+[a-fijknopqrtu-z]?|[a-fijknopqrtu-z])(?:\^\{?\w{1,9}\}?)?"
_UNKNOWN = re.compile(rf"(?<![^\s(]){_TERM}(?:\s*[-+*/]\s*{_TERM})+\s*$")
"""An expression with a letter for an unknown number, before ``=``; letters that may be units (5m + 3m) are left out."""
_TO_UNKNOWN = re.compile(r"(?:\s?[-+*/]\s?[0-9.]*[b-zB-HJ-Z](?![\w'’])(?:\^[0-9])?)+")
"""What goes on behind a number with an unknown one: ``5 - x``."""
_CONCLUDED = re.compile(
    r"(?:[.!?]\s|\n|^)\s{0,5}((?:so|thus|therefore|hence|total|in\s(?:total|all|conclusion)|altogether)\b[^.!?\n0-9]{1,200})[.!]?\s*$",
    re.IGNORECASE,
)
"""A last sentence that concludes, without figures."""
_ARROW = re.compile(r"^\s{0,5}(?:[-=]{1,2}>|[→⇒])\s{0,5}", re.MULTILINE)
_DEFINITIONS = re.compile(
    r"(?<=[0-9$)}\]%])\s?[,(]\s?where\s(?:(?!\b(?:so|then|thus|hence|therefore)\b)[^.\n]|\.(?=[0-9])){1,300}\.?\s*$",
    re.IGNORECASE,
)
_FEET = re.compile(r"[0-9]{1,2}'[0-9]{1,2}\"")
_TIME = re.compile(r"[0-9]{1,2}:[0-9]{2}")
_BOLD_NUMBER = re.compile(r"(?<!\S)\*\*([$€£]?[0-9][^\s*]*)\*\*(?=\s)")
_PARTS = re.compile("[\\s\u3000-\u9fff\uac00-\ud7a3\uff0c\uff1a\uff1b\uff01\uff1f](?<![万亿千百十个元만억천백십])")
"""White space, and the characters of a language that has none."""
_CHANGED_BEHIND = re.compile(
    "\\s?[\u4e00-\u9fff\uac00-\ud7a3]{0,3}\\s?(?:아[니닙]|이상|이하|미만|초과|(?:では|じゃ)(?:ない|ありません)|以[上下]|未満|未满)|[多余]"
)
"""In Chinese, Japanese and Korean: not 20, over 20, at most 20."""
_CHANGED_BEFORE = re.compile("(?:[不非](?:是|为|等于)?|[大小多少高低]于|超过|不到|最[多少]|至[多少])\\s?$")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_LINKS = re.compile(r"(?:[\s,;.&*]|\band\b|\bor\b|\\quad|\\text\{\s*(?:and|or)\s*\}|\b[a-z]\s*=|[()])*")


def last_value(text: str, prefer_formulas: bool) -> str | None:
    r"""The last formula or number of the text, whole: never the last number *of* a formula.

    Args:
        text: What is looked through.
        prefer_formulas: A formula in ``$...$``, ``\(...\)`` or ``\[...\]`` wins over numbers that come later.

    Example:
        >>> last_value(r"so $\frac{1+\sqrt5}{2}$", False), last_value("x is (1 + 3) / 2.", False), last_value("not 2", False)
        ('\\frac{1+\\sqrt5}{2}', '(1 + 3) / 2', 'not 2')
        >>> last_value("3 * 4 = 12 apples", False), last_value("so $x=2$ or $x=3$ in 5 tries", True)
        ('12', 'x=2, x=3')
        >>> last_value("It costs 50 cents.", False), last_value("The train leaves at 3:00 PM today", False)
        ('50 cents', '3:00 PM')
        >>> last_value("She has 4 (see step 3).", True), last_value("It was on March 5, 2024.", True)
        ('4', 'March 5, 2024')
    """
    if (label := whole_label(text)) is not None:
        return f"[{label}]"  # in brackets it is read as a name, not as its number
    text = without_labels(_BOLD_NUMBER.sub(r"\1", CALCULATOR.sub("", text)))
    if (concluded := _CONCLUDED.search(text)) is not None and (said := words_in_sentence(concluded[1])) is not None:
        return said
    text = _DEFINITIONS.sub("", _ARROW.sub("", text))
    text = with_powers(with_signs(text))
    spans = list(MATH_SPAN.finditer(text))
    number = last_number_span(text)
    if prefer_formulas:
        worth = [span for span in spans if number is None or span.end() > number[0] or not _is_name(_inside(span))]
        if worth:
            return _linked(text, worth)
    if number is None:
        return words_in_sentence(text)
    around = next((span for span in reversed(spans) if span.start() <= number[0] < span.end()), None)
    if around is not None:
        return _inside(around)
    if _CHANGED_BEFORE.search(text, max(0, number[0] - 6), number[0]) or _CHANGED_BEHIND.match(text, number[1]):
        return f"not {text[slice(*number)]}"
    date = date_at(text, *number) if prefer_formulas else None
    return _run_around(text, *number) if date is None else _date(text, *date)


def _inside(span: re.Match[str]) -> str:
    return next(group for group in span.groups() if group is not None).strip()


def _date(text: str, start: int, end: int) -> str:
    changed = change_before(text[max(0, start - MAX_RUN) : start], text[end : end + MAX_RUN])
    return text[start:end] if changed is None else f"{changed[0]} {text[start:end]}"


def _is_name(formula: str) -> bool:
    return re.fullmatch(r"\\?[A-Za-z]+(?:_\{?\w\}?)?", formula.strip()) is not None


def _linked(text: str, spans: list[re.Match[str]]) -> str:
    """The last formula, with those before it that only a comma, "and" or "or" keeps apart."""
    parts = [_inside(spans[-1])]
    for before, after in zip(spans[-2::-1], spans[:0:-1], strict=False):
        between = text[before.end() : after.start()]
        if not _LINKS.fullmatch(between) or "." in between or "\n\n" in between or not between.strip():
            break
        parts.insert(0, _inside(before))
    return ", ".join(parts)


def _run_around(text: str, start: int, end: int) -> str:
    """The number and the operators, brackets and letters that it is part of, on its line."""
    line_start = max(text.rfind("\n", 0, start) + 1, start - MAX_RUN)
    line_end = text.find("\n", end)
    line = text[line_start : min(line_end if line_end >= 0 else len(text), end + MAX_RUN)]
    start, end = start - line_start, end - line_start
    number = line[start:end].strip()
    joined = start_of_joined(line, start)
    if joined < start:
        return _without_loose_ends(line, joined, _token_end(line, end), joined)
    equals = [match.end() for match in _EQUALS.finditer(line) if match.end() <= start]
    floor = equals[-1] if equals else 0
    unknown = _UNKNOWN.search(line, 0, floor - 1) if equals else None
    if unknown is not None and re.search("[a-z]", unknown[0]):
        return line[unknown.start() : end].strip()  # x - 3 = 5 is not 5
    unknown = _TO_UNKNOWN.match(line, end)
    end = _token_end(line, end) if unknown is None else unknown.end()
    while start > floor and not _PARTS.match(line[start - 1]):
        start -= 1
    token = start
    plain = line[start:end].lstrip("*_`\"'")
    compound = whole_compound(line, start, end_of_amount(line, start, end)) if plain == number else (start, end)
    if compound[0] < start:
        return line[slice(*compound)]
    start = _extended(line, start, floor, line[end:])
    plain = line[start:end].lstrip("*_`\"'")
    if start == token and (plain == number or _TIME.fullmatch(plain)):
        end = end_of_amount(line, end - len(plain), end)
    if start == token:
        start, end = start_of_changed_name(line, start), end_of_alternative(line, end)
    return _without_loose_ends(line, start, end, floor)


def _token_end(line: str, end: int) -> int:
    while end < len(line) and not _PARTS.match(line[end]):
        end += 1
    return end


def _extended(line: str, start: int, floor: int, behind: str) -> int:
    """Where the run begins that is joined to what stands at ``start`` by operators, "or", or a "not"."""
    while True:
        before = line[floor:start].rstrip()
        joins = _JOIN.search(before) is not None or (
            line[start : start + 1] in _OPERATORS and line[start + 1 : start + 2] == " "
        )
        if not joins:
            break
        operand = _JOIN.sub("", before).rstrip(_OPERATORS + " ")
        token = operand.rsplit(None, 1)[-1] if operand else ""
        if not token or not _OPERAND.fullmatch(token):
            mark = _JOIN.search(before)
            return start if mark is None or mark.group() in "-:*/+" else floor + mark.start()
        start = floor + len(operand) - len(token)
    joined = _JOINED.search(line[floor:start].rstrip())
    if joined is not None:
        return floor + joined.start(1)
    before = line[floor:start].rstrip()
    changed = _FUNCTION.search(before) or change_before(before, behind)
    return start if changed is None else floor + changed.start()


def _without_loose_ends(line: str, start: int, end: int, floor: int) -> str:
    run = line[start:end].rstrip(".,;:!*`") if _FEET.match(line, start) else line[start:end].rstrip(".,;:!*\"'`")
    missing = sum(char in CLOSING for char in run) - sum(char in OPENING for char in run)
    if missing > 0:
        opening = max(line.rfind(char, floor, start) for char in OPENING)
        if opening >= 0 and not _WORD.search(line[opening:start]):
            return line[opening:start] + run
        run = run.rstrip(CLOSING)
    return run.lstrip("*_`\"'") if missing >= 0 else run.lstrip("*_`\"'" + OPENING)
