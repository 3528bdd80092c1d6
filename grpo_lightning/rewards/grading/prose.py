"""The answer inside a sentence: ``The answer is 72``, ``She sold 72 clips``."""

from __future__ import annotations

import re

from grpo_lightning.rewards.grading.amounts import end_of_time
from grpo_lightning.rewards.grading.calendar import date_at
from grpo_lightning.rewards.grading.denied import change_before, denied_behind
from grpo_lightning.rewards.grading.notation import MATH_SPAN
from grpo_lightning.rewards.grading.number_words import MAX_WORDS, NUMBER_WORDS, SCALES, number_in_words
from grpo_lightning.rewards.grading.quantities import OTHER_VALUE
from grpo_lightning.rewards.grading.symbols import FUNCTIONS, MONEY

_LEAD = re.compile(
    r"(?:(?:so|thus|hence|therefore|then|finally|in conclusion|consequently|and)[,:]?\s+)*"
    r"(?:(?:the|my|our|your|its)\s+)?(?:(?:final|correct|right|exact|total|simplified|numerical)\s+)*"
    r"(?:answer|ans|result|solution|value|sum|total|probability|number|area|length|choice|option)s?"
    r"(?:\s+(?:to|of|for)\s+(?:(?:the|this|your)\s+)?(?:question|problem|expression|equation|\$?[a-zA-Z]\$?))?"
    r"(?:\s*(?:(?:is|are|equals|was|would be|must be|will be)(?:\s+(?:equal to|simply|just|therefore|thus))?\s*:?|:)"
    r"|(?<!area)(?<!length)(?<!number)(?<!probability)(?<!total)\s*=)\s*(?=\S)",
    re.IGNORECASE,
)
_SUBJECT = re.compile(
    r"(?:(?:so|thus|hence|therefore|then|and)[,:]?\s+)*"
    r"(?:\$?[a-z]\$?\s+(?:is|equals)|(?:it|this|that|there|they|he|she|we|you|which)(?:'s|'re|\s+(?:is|are|was|were|get|gets|have|has|equals|find|obtain)))(?:\s+equal to)?\s+"
    r"(?=[-\\$€£⦃(\[0-9])",
    re.IGNORECASE,
)
_MARKERS = re.compile(r"(?:so|thus|hence|therefore)[,:]?\s+(?=[-\\$0-9(]|(?:yes|no|true|false)\b)", re.IGNORECASE)
_CONCLUSION = re.compile(
    r"(?!(?i:yes|no|true|false)\b).*[^\s,;.][,;.]?\s+(?:(?:so|therefore|thus|hence)[,:]?\s+(?=[-$(\[⦃]?[0-9])"
    r"|(?:so|therefore|thus|hence|⇒|→)[,:]?\s+(?=\$?\\?[A-Za-z]\w{0,3}\s*[=<>≤≥]))",
    re.DOTALL,
)
_NUMBER = re.compile(
    rf"(?<![\w^_{{.])(?:-\s?)?(?:(?:US|A|C)?[{MONEY}]\s?)?-?"
    r"(?:(?:[0-9]{1,3}(?:[, ][0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:\s?/\s?[0-9]+|\s[0-9]+/[0-9]+)?(?:\s?%)?"
)
_IN_JSON = re.compile(
    r"\\?\{\s*[\"'](?:final[_ ]?)?(?:answer|result|value|solution)[\"']\s*:\s*([\"']?)([^\"'{}]+)\1\s*\\?\}",
    re.IGNORECASE,
)
_EXPLANATION = re.compile(
    r"\s*\n\s*[*_]*(?:explanation|reasoning|justification|because)\b.*", re.IGNORECASE | re.DOTALL
)
_REASON = re.compile(
    r"(?<=[^\s,;.])\s\((?:because|since|as)\s[^()\n]{1,200}\)$|(?<=[^\s,;.])(?:[,;.]?\s+because|,\s+since)\s[^\n]*$",
    re.IGNORECASE,
)
MAX_STATED = 4
"""Words of an answer without a figure that a reason may follow."""
_OTHER_VALUES = OTHER_VALUE | SCALES.keys() | (NUMBER_WORDS.keys() - {"one"}) | set(FUNCTIONS)
_STATES = re.compile(
    r"(?:^|[:=,]|\b(?:is|are|was|were|be|takes?|gets?|needs?|has|have|had|makes?|leaves?|costs?|equals?|exactly|total|so|thus|therefore"
    r"|receives?|eats?|buys?|sells?|sold|bought|ate|made|left))\s*$",
    re.IGNORECASE,
)
_ANY_NUMBER = (
    NUMBER_WORDS.keys() | SCALES.keys() | set("hundreds thousands millions dozens first second third halves".split())
)
MAX_SENTENCE = 40
"""Words of a sentence that says one number."""
_WORDS = re.compile(r"[A-Za-z]+")
_HAN = re.compile("[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3]")
_OTHER_CHARACTERS = re.compile(
    "[不非或未没约超至余第万亿千百十兆分半倍负减错年月日时点約負倍만억천백십]|[大小多少高低]于|最[多少]|(?<=[0-9])多|以[上下]"
    "|ない|ません|아니|아닙|이상|이하|미만|초과|또는|혹은|[년월일시분초]"
)
"""Beside a number they make it another value, a date or a place, or none."""
_NO_PROSE = re.compile(r"[\\^_*+=<>≤≥≠≈±∞∪∈|(){}\[\]⦃⦄/]")


def only_answer(text: str) -> str:
    r"""The text without an explanation below it, out of a JSON object that holds nothing else.

    Example:
        >>> only_answer('{"answer": 18}'), only_answer("18\n\nExplanation: 9 eggs for 2 dollars each")
        ('18', '18')
    """
    text = _EXPLANATION.sub("", text)
    stated = _REASON.sub("", text)
    text = stated if re.search(r"[0-9\\]", stated) or len(stated.split()) <= MAX_STATED else text
    found = _IN_JSON.fullmatch(text)
    return text if found is None else found[2]


def without_lead(text: str) -> str:
    """The text without ``The final answer is``, ``Answer:``, ``so it is`` and the like before it.

    Example:
        >>> without_lead("The answer is 72"), without_lead("Answer: not 2"), without_lead("answer")
        ('72', 'not 2', 'answer')
    """
    for _ in range(3):
        for pattern in (_LEAD, _SUBJECT, _MARKERS):
            match = pattern.match(text)
            if match is not None and match.end():
                text = text[match.end() :]
                break
        else:
            break
    return text


def without_derivation(text: str) -> str:
    """What ``..., so x = 58`` comes to; a text without a conclusion as it is.

    Example:
        >>> without_derivation("x + x = 116, so x = 58"), without_derivation("2x = 6 ⇒ x = 3"), without_derivation("so 5")
        ('x = 58', 'x = 3', 'so 5')
    """
    found = _CONCLUSION.match(text)
    return text if found is None else text[found.end() :]


def formula_in_sentence(text: str) -> str | None:
    r"""The one formula between dollars or LaTeX's brackets in a sentence; None where there are none or several.

    Example:
        >>> formula_in_sentence(r"We get $\frac12$ apples."), formula_in_sentence("It is not $2$.")
        ('\\frac12', None)
    """
    matches = list(MATH_SPAN.finditer(text))
    if len(matches) != 1:
        return None
    outside = text[: matches[0].start()] + " " + text[matches[0].end() :]
    words = [word.lower() for word in _WORDS.findall(outside)]
    long_words = [word for word in words if len(word) > 1]
    if not long_words or re.search(r"[0-9\\=<>+*/^]", outside) or not OTHER_VALUE.isdisjoint(words):
        return None
    before = [word for word in _WORDS.findall(text[: matches[0].start()]) if len(word) > 1]
    return next(group for group in matches[0].groups() if group is not None) if before else None


def number_in_sentence(text: str) -> str | None:
    """The one number or date of a sentence, with its sign and currency; None where other words change its value.

    Example:
        >>> number_in_sentence("She sold 1,200 clips in May"), number_in_sentence("not 2"), number_in_sentence("sin 2")
        ('1,200', None, None)
        >>> number_in_sentence("It was on March 5, 2024")
        'March 5, 2024'
        >>> number_in_sentence("所以答案是42个"), number_in_sentence("42万"), number_in_sentence("不是42")
        ('42', None, None)
    """
    if _HAN.search(text) is not None:
        return _number_among_characters(text)
    words = [word.lower() for word in _WORDS.findall(text)]
    if not any(map(str.isdigit, text)):
        return words_in_sentence(text)
    if len([word for word in words if len(word) > 1]) < 1 or any(
        len(word) == 1 and word not in "ais" for word in words
    ):
        return None
    if not _OTHER_VALUES.isdisjoint(words) or "up to" in text:
        return None
    numbers = [match for match in _NUMBER.finditer(text) if match.group().strip()]
    date = date_at(text, *numbers[-1].span()) if numbers else None
    if date is not None and not re.search("[0-9]", text[: date[0]] + text[date[1] :]):
        return None if change_before(text[: date[0]], text[date[1] :]) else text[slice(*date)]
    if len(numbers) != 1:
        return None
    start, end = numbers[0].span()
    if change_before(text[:start], text[end:]) is not None or denied_behind(text, end) is not None:
        return None
    if numbers[0].group().isdigit() and (clock := end_of_time(text, start, end)) is not None:
        return text[start:clock]
    if _NO_PROSE.search(text[:start] + text[end:]) or re.search("[0-9]", text[:start] + text[end:]):
        return None
    behind = text[end : end + 1]
    return (
        None
        if behind.isalpha() or (behind in ("!", "-") and not text[end + 1 : end + 2].isspace())
        else numbers[0].group().strip()
    )


def words_in_sentence(text: str) -> str | None:
    """The one number that a sentence without figures has in words; None where other words change it.

    Example:
        >>> words_in_sentence("It takes three bolts of fabric."), words_in_sentence("It takes two or three bolts.")
        ('three', None)
        >>> words_in_sentence("So it is solved in three steps."), words_in_sentence("So she has three.")
        (None, 'three')
        >>> words_in_sentence("One of them is blue."), words_in_sentence("It is not three.")
        (None, None)
    """
    places = list(_WORDS.finditer(text))
    words = [place[0].lower() for place in places]
    if len(words) < 3 or len(words) > MAX_SENTENCE or not OTHER_VALUE.isdisjoint(words):
        return None
    first = next((place for place, word in enumerate(words) if word in NUMBER_WORDS), len(words))
    found = number_in_words(" ".join(words[first : first + MAX_WORDS]))
    if found is None or "\\" in text:
        return None
    end = min(first + MAX_WORDS, len(words)) - len(found[1])
    said = text[places[first].start() : places[end - 1].end()]
    is_alone = _ANY_NUMBER.isdisjoint(words[:first] + words[end:])
    is_changed = change_before(text[: places[first].start()], text[places[end - 1].end() :]) is not None
    is_stated = _STATES.search(text, 0, places[first].start()) is not None
    return None if words[first:end] == ["one"] or not is_alone or is_changed or not is_stated else said


def _number_among_characters(text: str) -> str | None:
    """The one number of a Chinese or Japanese sentence."""
    if _OTHER_CHARACTERS.search(text) or _WORDS.search(text) or "\\" in text:
        return None
    text = _HAN.sub(" ", text)
    numbers = list(_NUMBER.finditer(text))
    if len(numbers) != 1:
        return None
    outside = text[: numbers[0].start()] + text[numbers[0].end() :]
    return None if re.search("[0-9]", outside) or _NO_PROSE.search(outside) else numbers[0].group().strip()
