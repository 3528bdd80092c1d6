"""Answers in words: names, choices, yes and no, set phrases of mathematics, and names that end in a number, of which the words
count too: ``Apollo 11``, ``World War 2``, ``summer 1998``.
"""

from __future__ import annotations

import re

from grpo_lightning.rewards.grading.denied import APART
from grpo_lightning.rewards.grading.quantities import OTHER_VALUE
from grpo_lightning.rewards.grading.symbols import FUNCTIONS

_PHRASES = {
    "∅": "∅|⦃⦄|empty set|the empty set|no solution|no solutions|no real solution|no real solutions|none|no real roots",
    "ℝ": "ℝ|all real numbers|all reals|all real x|any real number|x ∈ ℝ",
    "ℤ": "ℤ|all integers|the integers|integers|any integer|the set of integers|the set of all integers|x ∈ ℤ",
    "ℕ": "ℕ|all natural numbers|the natural numbers|natural numbers|x ∈ ℕ",
    "ℚ": "ℚ|all rational numbers|the rational numbers|rational numbers|x ∈ ℚ",
    "infinitely many": "infinitely many|infinitely many solutions|infinite solutions|an infinite number of solutions|infinite|an infinite number",
    "undefined": "undefined|dne|does not exist|not defined",
    "∞": "∞|+∞|positive ∞",
    "-∞": "-∞|negative ∞|minus ∞",
    "true": "true",
    "false": "false",
}
_MEANING = {phrase: kept for kept, phrases in _PHRASES.items() for phrase in phrases.split("|")}
_EXISTENCE = re.compile(
    r"^(?:there (?:is|are|exists?) |(?:it|the equation|the system) has )(?=no )|(?<=no solution|o solutions) (?:exists?|found)$"
)
_LETTERS = re.compile(r"[^\W\d_]+")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_FORMULA = re.compile(r"[\\^_*+=<>≤≥≠≈±∞∪∈|{}\[\]⦃⦄/]")
_FRAME = re.compile(
    r"^(?:so |thus |hence |therefore )?(?:(?:it|that|this|he|she|they|there)(?:s| s| is| was| are| were| will be| would be| must be| has to be) |i(?: would)? (?:think|believe|say) (?:it s |it is )?)?"
    r"(?:(?:on|in|at) )?(?=.)"
)
_SENTENCE = re.compile(
    r"(?:the|its|his|her|their|our|my)\s(?:[\w'’-]{1,30}\s){1,9}(?:is|was|are|were)\s(?:called\s|named\s)?([^,;:?!]{1,80})",
    re.IGNORECASE,
)
"""``The capital of France is Paris``; what it says stands behind the last verb."""
_FLIPS = re.compile(
    r"\b(?:not|never|no|wrong|incorrect|false|opposite|unless|if|neither|nor|except|other|former|previous)\b|n['’]t\b",
    re.IGNORECASE,
)
_SHORT_WORDS = frozenset("no on if in is it of or to up us we he me my so do go as at an am by ok hi ha".split())
_YES = re.compile(r"(yes|no|true|false)(?:[.,;:!]\s*(?=\W|\S|$)|$)", re.IGNORECASE)
_AGAINST_YES = re.compile(r"\b(?:yes|no|not|true|false)\b", re.IGNORECASE)
_AGAINST_NO = re.compile(r"\b(?:yes|no|true|false)\b", re.IGNORECASE)
_CHOICE = re.compile(
    r"(?:(?:option|choice|answer)\s+)?(?:[(\[]([A-Za-z])[)\]]|([A-Z])\)|([A-Z])[.:](?=\s|$)|([A-Z])|(?<=n )([a-z])|(?<=e )([a-z]))(?:\s+(\S.*))?",
    re.IGNORECASE,
)
_LABELLED = re.compile(r"(?:(?:option|choice|answer)\s+)?(?:\([A-J]\)|[A-J][).:])\s*(\S.*)", re.IGNORECASE)
_ORDINALS = {
    word: f"{place}{'st nd rd'.split()[place - 1] if place < 4 else 'th'}"
    for place, word in enumerate("first second third fourth fifth sixth seventh eighth ninth tenth".split(), start=1)
}
_CALENDAR = (
    "monday mon|tuesday tue tues|wednesday wed|thursday thu thur thurs|friday fri|saturday sat|sunday sun"
    "|january jan|february feb|march mar|april apr|june jun|july jul|august aug|september sep sept|october oct|november nov"
    "|december dec"
)
_SHORTENED = {name: names.split()[0] for names in _CALENDAR.split("|") for name in names.split()}
"""Names of days and months, by all their spellings."""
_ORDINAL = re.compile(rf"\b(?:{'|'.join(_ORDINALS)})\b")
_OPTION = re.compile(r"(?:^|\s)\(([A-J])\)|^[&/+]\s?([A-J])$", re.IGNORECASE)
_DENIAL = re.compile(
    r"(?:(?:is|was|seems) (?:(?!not)\w+ )?(?:not$|incorrect|wrong|false|invalid|(?:ruled )?out\b|eliminated)"
    r"|(?:(?:is|was|can|could) ?(?:not|n['’]t|['’]t)|cannot)(?: be)? (?:the )?(?:correct|right|true|valid|answer)\b)",
    re.IGNORECASE,
)
_AFFIRMED = re.compile(
    r"(?:is|was) (?:the )?(?:correct|right|true|best|answer)(?: (?:answer|choice|option|one))?", re.IGNORECASE
)
_ANOTHER = re.compile(r"(?:\band\b|\bor\b|,).*(?<![A-Za-z])\(?[A-Z][).:]|\b(?:or|and|not)\s+\(?[A-Z]\)?(?![A-Za-z])")


def same_meaning(text: str) -> str | None:
    """The symbol of a set phrase of mathematics; None for all other texts.

    Example:
        >>> same_meaning("No real solutions"), same_meaning("all real numbers"), same_meaning("Paris")
        ('∅', 'ℝ', None)
    """
    return _MEANING.get(_EXISTENCE.sub("", text.lower()))


def yes_or_no(text: str) -> str | None:
    """The first word of ``Yes, because ...``; None for texts that begin otherwise, or say both.

    Example:
        >>> yes_or_no("Yes, it is"), yes_or_no("No, it does not"), yes_or_no("Yes, no"), yes_or_no("Yesterday")
        ('yes', 'no', None, None)
    """
    match = _YES.match(text)
    if match is None:
        return None
    said = match[1].lower()
    against = _AGAINST_NO if said in ("no", "false") else _AGAINST_YES
    return None if against.search(text, match.end()) else said


def is_words(text: str) -> bool:
    r"""True for text that must not be read as a product of letters: ``east``, ``Evelyn``, ``yes``; False for ``xy``.

    Example:
        >>> [is_words(text) for text in ("east", "no", "xy", "2x", "\\sin x", "New York", "not 2")]
        [True, True, False, False, False, True, True]
    """
    plain = _COMMAND.sub(" ", text)
    words = [word for word in _LETTERS.findall(plain) if word.lower() not in FUNCTIONS]
    if _FORMULA.search(text):
        return any(len(word) > 3 for word in words)
    return any(_is_word(word) for word in words)


def _is_word(word: str) -> bool:
    if len(word) == 1:
        return not word.isascii() and not "α" <= word.lower() <= "ω"
    if len(word) == 2 and word.islower():
        return word in _SHORT_WORDS
    return not (len(word) == 3 and word.islower() and (set("aeiou").isdisjoint(word) or set(word) == set("abc")))


def same_words(reference: str, answer: str, ignore_case: bool = True) -> bool:
    """True where two texts say the same up to case, articles, punctuation, and the frame of a choice.

    Args:
        reference: The text looked for.
        answer: The text given.
        ignore_case: False where the reference is a product of letters, whose case counts.

    Example:
        >>> same_words("Paris", "paris."), same_words("B", "(B) Rome"), same_words("east", "seat"), same_words("Dec", "December")
        (True, True, False, True)
        >>> same_words("Paris", "The capital of France is Paris."), same_words("Paris", "The capital is not Paris")
        (True, False)
    """
    stated = _SENTENCE.fullmatch(answer)
    if stated is not None and not _FLIPS.search(answer, 0, stated.start(1)) and not _SENTENCE.fullmatch(reference):
        answer = stated[1]
    one, other = _bare(reference, ignore_case), _bare(answer, ignore_case)
    if one == other or (one in _SHORTENED and _SHORTENED[one] == _SHORTENED.get(other)):
        return bool(one)
    wanted, given = choice(reference), choice(answer)
    return wanted is not None and wanted == given


def choice(text: str) -> str | None:
    """The letter of a choice: ``B``, ``(b)``, ``B.``, ``Option B``, ``B) Rome``; None for anything else.

    Example:
        >>> choice("(b)"), choice("Option C"), choice("B. Rome"), choice("Bob"), choice("A or B")
        ('B', 'C', 'B', None, None)
        >>> choice("(B) is wrong"), choice("(B) & (C)"), choice("A. Rome B. Paris")
        (None, None, None)
    """
    match = _CHOICE.fullmatch(text.strip())
    if match is None or _ANOTHER.search(text):
        return None
    *letters, rest = match.groups()
    letter = next(letter for letter in letters if letter)
    framed = letters[0] or letters[1] or letters[2]
    if rest and not framed and _AFFIRMED.fullmatch(rest):
        return letter.upper()
    if rest and (not framed or _DENIAL.match(rest) or _has_other_options(rest, text.strip()[: match.start(7)])):
        return None
    plain = text.strip().rstrip(".") == letter
    return None if plain and letter.islower() else letter.upper()


def _has_other_options(rest: str, frame: str) -> bool:
    """Whether other letters follow what a choice says, as in ``A. Rome B. Paris`` and ``(B) & (C)``."""
    frame = frame.rstrip()
    letter, mark = frame[-2].upper(), frame[-1]
    named = {(found[1] or found[2]).upper() for found in _OPTION.finditer(rest)}
    following = rf"\s{chr(ord(letter) + 1)}{re.escape(mark)}(?:\s|$)"
    return bool(named - {letter}) or re.search(following, rest) is not None


def choice_label(text: str) -> str | None:
    """What a choice says behind its letter: ``Rome`` of ``(B) Rome``; None without letter or text.

    Example:
        >>> choice_label("(B) Rome"), choice_label("B"), choice_label("C. 15"), choice_label("Rome")
        ('Rome', None, '15', None)
    """
    match = _LABELLED.fullmatch(text.strip())
    return None if match is None else match[1]


def _bare(text: str, ignore_case: bool) -> str:
    text = _ORDINAL.sub(lambda match: _ORDINALS[match[0]], text.casefold() if ignore_case else text)
    text = re.sub(r"[\"'.,;:!?()\s]+|(?<=\w)-(?=\w)", " ", text).strip()
    text = _FRAME.sub("", text)
    return re.sub(r"^(?:the|a|an) (?=.)", "", text)


_NAME = re.compile(r"(?:[A-Z][\w.'-]*\s+){1,4}[0-9]+|(?P<word>[a-z]{3,})\s+[0-9]+")
_NO_NAMES = OTHER_VALUE | frozenset(
    "answer total result sum value about exactly approximately around roughly altogether only just after before with for and"
    " are was were has have had get gets got sold makes made equals is".split()
)
_WORDS = re.compile(r"[^\W_]+")


def is_name(text: str) -> bool:
    """True for a reference of a few words and a number behind them, which is no amount of anything.

    Example:
        >>> is_name("Apollo 11"), is_name("summer 1998"), is_name("Total 72"), is_name("72 clips"), is_name("She sold 72")
        (True, True, False, False, False)
    """
    if _NAME.fullmatch(text) is None:
        return False
    return _NO_NAMES.isdisjoint(word.lower() for word in _WORDS.findall(text))


def same_name(reference: str, answer: str) -> bool:
    """True where the answer holds the whole name and no second number, or is nothing but the name's number.

    Example:
        >>> same_name("Apollo 11", "It was Apollo 11."), same_name("Apollo 11", "11"), same_name("Apollo 11", "Gemini 11")
        (True, True, False)
    """
    wanted, given = (_WORDS.findall(text.casefold()) for text in (reference, answer))
    if given == wanted[-1:]:
        return True
    if sum(word.isdigit() for word in given) > 1 or not OTHER_VALUE.isdisjoint(given):
        return False
    if not APART.isdisjoint(given) or len(given) < len(wanted):
        return False
    return any(given[place : place + len(wanted)] == wanted for place in range(len(given)))
