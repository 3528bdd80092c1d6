"""One way of writing: Unicode, LaTeX, Markdown and plain text become the same characters before anything is compared."""

from __future__ import annotations

import re
import unicodedata

from grpo_lightning.rewards.grading.angles import with_radians
from grpo_lightning.rewards.grading.braces import with_groups, without_commands
from grpo_lightning.rewards.grading.symbols import (
    CHARACTERS,
    COMMANDS,
    FUNCTIONS,
    MONEY,
    NUMBER_SETS,
    SUBSCRIPTS,
    SUPERSCRIPTS,
    VULGAR,
)

MATH_SPAN = re.compile(
    r"\$\$(?P<display>[^$]{1,1000})\$\$"
    # As in Pandoc: no space inside the dollars, no digit behind them, or else they are money.
    r"|(?<![\\\w])\$(?P<inline>(?![\s,.;)])(?:\\\$|[^$]){1,1000}?(?<![\s\\(])(?<!\s-))\$(?!\d)"
    r"|(?<!\\)\\\((?P<round>.{1,1000}?)\\\)"
    r"|(?<!\\)\\\[(?P<square>.{1,1000}?)\\\]",
    re.DOTALL,
)
"""A formula in a text, between dollars or LaTeX's brackets."""

CALCULATOR = re.compile(r"<<[^<>]{0,200}>>")
"""GSM8K's notes to a calculator, ``<<48/2=24>>``."""

_BOLD = re.compile(r"(\*\*|__|```|`)(?=\S)((?:(?!\1).)+?)(?<=\S)\1")
_EMPHASIS = re.compile(r"([*_])(?=[^\s*_])([^*_]+)(?<=\S)\1[.,]?")
_OVERLINED = re.compile("(?:[0-9]\u0305)+")
_REPEATING = re.compile(r"(?<=\.)([0-9])\s+(?:repeating|recurring)\b")
_CENTS = re.compile(r"(?<![0-9.,])((?:[0-9]{1,3}(?:[. ][0-9]{3})+|[0-9]+)),([0-9]{2})(?![0-9,.])")
_SUPERSCRIPT = re.compile(f"[{''.join(SUPERSCRIPTS)}]+")
_SUBSCRIPT = re.compile(f"[{''.join(SUBSCRIPTS)}]+")
_VULGAR = re.compile(f"([0-9]?)([{''.join(VULGAR)}])")
_COMMAND = re.compile(r"\\([A-Za-z]+) ?")
_SIZES = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits|strut)(?![A-Za-z])\.?")
_SPACES = re.compile(
    r"(?<!\\)\\[,;: >]|\\(?:quad|qquad|thinspace|medspace|enspace|hfill|newline)(?![A-Za-z])|\\[hv]?space\{[^{}]*\}"
)
_FRACTION = re.compile(r"\\[dtc]?frac(?![A-Za-z])\s*")
_ROOT = re.compile(r"\\sqrt\s*(?=[0-9A-Za-z])(.)")
_CHOOSE = re.compile(r"\{\s*([^{}]{1,40}?)\s*\\choose(?![A-Za-z])\s*([^{}]{1,40}?)\s*\}")
_HIGHER_ROOT = re.compile(r"([∛∜])\s*(?:\{([^{}]*)\}|([0-9]+|[A-Za-z]))")
_DECIMAL_COMMA = re.compile(r"(?<=[0-9])\{,\}(?=[0-9])(?![0-9]{3}(?![0-9]))")
_DEGREES = re.compile(r"\^\s*(?:\{\s*(?:\\circ|\\degree|°)\s*\}|\\circ(?![a-z])|°)|\\(?:circ|degree)(?![a-z])")
_FUNCTION = re.compile(
    rf"(?<![\\A-Za-z])(?<![0-9] )({'|'.join(FUNCTIONS)})(?![A-Za-z])(?=\s*[\^(_{{\\0-9|]|\s+[0-9a-zα-ω]\b)"
)
_NUMBER_SET = re.compile(r"\\(?:mathbb|Bbb)\s*(?:\{\s*([RZNQC])\s*\}|([RZNQC])(?![A-Za-z]))")
_NOT_EQUAL = re.compile(r"\\not\s*(?:[=<>]|\\(?:equiv|approx|sim|in|le|ge)(?![A-Za-z]))")
_EXPONENT = re.compile(r"\^\s*(-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+))")
_BASE_BRACKET = re.compile(r"(?<![\w)])\(([0-9A-F]{1,40})\)\s?_(?=\{?[0-9a-z])")
_LINES = re.compile(r"\\begin\{(aligned|align\*?|equation\*?|gathered|cases|split)\}(.*?)\\end\{\1\}", re.DOTALL)
_RELATIONS = re.compile(r"=/=|=\\=|<>|-{1,2}>|<=|=<|>=|!=|=>|==|/=")
_RELATION_NAMES = {
    "<=": "≤",
    "=<": "≤",
    ">=": "≥",
    "!=": "≠",
    "/=": "≠",
    "=/=": "≠",
    "=\\=": "≠",
    "<>": "≠",
    "==": "=",
    "=>": "⇒",
    "->": "→",
    "-->": "→",
}
_PLUS_MINUS = re.compile(r"\+/-|^\+-(?=[0-9\\])|\bplus[ -]or[ -]minus\b ?", re.IGNORECASE)
_ENDS = " \t\n.,;:。"


def visible(text: str) -> str:
    r"""The text without characters that show nothing (zero-width ones, NUL), and with plain spaces.

    Example:
        >>> visible("4\u200b2\u00a0km\x00")
        '42 km'
    """
    if text.isascii() and text.isprintable():
        return text
    kept = (char if char in "\n\t" else _shown(char) for char in unicodedata.normalize("NFC", text))
    return "".join(kept)


def _shown(char: str) -> str:
    category = unicodedata.category(char)
    if category in ("Cc", "Cf", "Cs", "Cn", "Co"):
        return ""
    return " " if category == "Zs" else char


def _ascii(char: str) -> str:
    """Digits of any script, full-width forms, ligatures and the alphabets of mathematics (not ``ℝ``) as plain ones."""
    digit = unicodedata.decimal(char, None)
    if digit is not None:
        return str(digit)
    if unicodedata.decomposition(char).startswith(("<compat>", "<font>")) and not "\u2100" <= char <= "\u214f":
        plain = unicodedata.normalize("NFKC", char)
        return plain if plain.isalpha() else char
    return chr(ord(char) - 0xFEE0) if "！" <= char <= "～" else char


def without_delimiters(text: str) -> str:
    r"""The text with its formulas where they stand, the marks around them gone; a dollar of money stays.

    Example:
        >>> without_delimiters(r"$x=2$ or \(x=3\) for $5")
        'x=2 or x=3 for $5'
    """
    return MATH_SPAN.sub(lambda match: next(group for group in match.groups() if group is not None), text)


def tidy(text: str) -> str:
    r"""The text in one notation: relations, set braces, infinity and so on as single characters, ``\text`` opened.

    What LaTeX must keep (fractions, roots, functions, Greek letters) stays LaTeX, with its braces in place.

    Example:
        >>> tidy(r"$\left\{\tfrac12,\ 3\text{ cm}\right\}.$"), tidy("x ≤ −2³"), tidy(r"1{,}234\,\%")
        ('⦃\\frac{1}{2}, 3 cm ⦄', 'x ≤ -2^{3}', '1,234 %')
    """
    text = visible(text).strip()
    text = without_delimiters(text if text.isascii() else "".join(map(_ascii, text)))
    text = CALCULATOR.sub("", text)
    text = _BOLD.sub(r"\2", text)
    if (emphasis := _EMPHASIS.fullmatch(text)) is not None:
        text = emphasis[2]
    text = _OVERLINED.sub(lambda m: "\\overline{" + m[0].replace("\u0305", "") + "}", text)
    text = _REPEATING.sub(r"\\overline{\1}", text)
    text = _VULGAR.sub(lambda m: f"{m[1]} {VULGAR[m[2]]}" if m[1] else VULGAR[m[2]], text)
    text = _SUPERSCRIPT.sub(lambda m: "^{" + "".join(SUPERSCRIPTS[char] for char in m[0]) + "}", text)
    text = _SUBSCRIPT.sub(lambda m: "_{" + "".join(SUBSCRIPTS[char] for char in m[0]) + "}", text)
    text = "".join(CHARACTERS.get(char, char) for char in text)
    text = _HIGHER_ROOT.sub(
        lambda m: f"\\sqrt[{'3' if m[1] == '∛' else '4'}]{{{m[2] or m[3]}}}", with_groups(text, "∛")
    )
    text = _DECIMAL_COMMA.sub(".", text)
    if "\\" in text:
        text = _plain_commands(text)
    text = text.replace("**", "^").replace("~", " ").replace("{,}", ",").replace("...", "…")
    text = _RELATIONS.sub(lambda m: _RELATION_NAMES[m[0]], _PLUS_MINUS.sub("±", text))
    text = _FUNCTION.sub(lambda m: "\\" + m[1] + " ", text)
    text = re.sub(r"(?<![\\A-Za-z])pi(?![A-Za-z])", "π", text)
    text = re.sub(r"(?<![\\A-Za-z])(?:infinity|inf|oo)(?![A-Za-z])", "∞", text, flags=re.IGNORECASE)
    text = with_groups(text, "^")
    text = with_groups(with_groups(text, "√"), "\\sqrt").replace("√", "\\sqrt")
    text = _EXPONENT.sub(r"^{\1}", _ROOT.sub(r"\\sqrt{\1}", text))
    text = _BASE_BRACKET.sub(r"\1_", re.sub(r"\s*\^\s*", "^", " ".join(text.split())))
    if "," in text and any(sign in text for sign in MONEY):  # €18,50; without a currency it may be two numbers
        text = _CENTS.sub(lambda match: re.sub("[. ]", "", match[1]) + "." + match[2], text)
    return with_radians(trimmed(text))


def trimmed(text: str) -> str:
    """Without white space and punctuation around it; an ellipsis and the point of ``.5`` are no punctuation."""
    text = text.strip().rstrip(_ENDS).lstrip(" \t\n,;:#")
    while len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip().rstrip(_ENDS)
    return text.removesuffix("\\\\").strip()


def _plain_commands(text: str) -> str:
    text = _LINES.sub(_joined_lines, text)
    if "\\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z(\[])", r"\\", text)  # backslashes doubled by JSON
    text = text.replace(r"\{", "⦃").replace(r"\}", "⦄").replace(r"\%", "%").replace(r"\$", "$").replace(r"\#", "#")
    text = re.sub(r"\\lg(?![A-Za-z])", r"\\log_{10}", _CHOOSE.sub(r"\\binom{\1}{\2}", text))
    text = text.replace(r"\!", "").replace(r"\&", "&").replace(r"\_", "_").replace(r"\|", "|")
    text = _DEGREES.sub("°", re.sub(r"\{\s*\}", " ", _SPACES.sub(" ", _SIZES.sub("", text))))
    text = _NUMBER_SET.sub(lambda m: NUMBER_SETS[m[1] or m[2]], _NOT_EQUAL.sub("≠", without_commands(text)))
    text = _with_whole_fractions(text)
    text = re.sub(
        r"\\pi +(?=(?:[cdkm]m|in|ft|yd|mi|kg|mL|rad|sec|min|deg|[a-z]{4,})\b)", "π ", text
    )  # 10\pi cm: the space begins a unit
    return _COMMAND.sub(lambda m: COMMANDS.get(m[1], m[0]), text)


def _joined_lines(match: re.Match[str]) -> str:
    """Equations under each other, with commas between them; a case with its condition stays as it is."""
    name, lines = match.groups()
    if name == "cases" and "&" in lines.replace("&=", "="):
        return match[0]
    return ", ".join(line.replace("&", "").strip() for line in lines.split("\\\\") if line.strip())


def _with_whole_fractions(text: str) -> str:
    r"""``\dfrac12`` and ``\frac1{2}`` with both braces."""
    parts = _FRACTION.split(text)
    for index in range(len(parts) - 1, 0, -1):
        part = re.sub(r"^([0-9A-Za-z])", r"{\1}", parts[index])
        parts[index] = re.sub(r"^(\{[^{}]*\})\s*([0-9A-Za-z])", r"\1{\2}", part)
    return r"\frac".join(parts)
