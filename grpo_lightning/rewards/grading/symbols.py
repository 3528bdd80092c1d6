"""Characters and commands that mean the same, and the one of them that is kept."""

from __future__ import annotations

FUNCTIONS = (
    "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|gcd|lcm|max|min|det|arg|mod".split("|")
)
"""Names that LaTeX has a command for, and that plain text writes without a backslash."""

SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿˣ", "0123456789-+nx", strict=True))
SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
VULGAR = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5",
    "⅙": "1/6", "⅚": "5/6", "⅐": "1/7", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8", "⅑": "1/9", "⅒": "1/10",
}  # fmt: skip

CHARACTERS = {
    "−": "-", "–": "-", "‐": "-", "‑": "-", "×": "*", "∗": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/", "⁄": "/", "∕": "/",
    "∶": ":", "⩽": "≤", "⩾": "≥", "≦": "≤", "≧": "≥", "≅": "≈", "≃": "≈", "ø": "∅", "Ø": "∅", "º": "°", "˚": "°",
    "µ": "μ", "Ω": "Ω", "“": '"', "”": '"', "‘": "'", "’": "'", "′": "'", "″": '"', "％": "%", "＄": "$", "…": "…",
    "∨": " or ", "∧": " ∧ ", "⟨": "(", "⟩": ")",
}  # fmt: skip

_SAME = {
    "≤": "le leq leqslant leqq", "≥": "ge geq geqslant geqq", "≠": "ne neq", "<": "lt", ">": "gt", "≈": "approx simeq cong",
    "∈": "in", "∪": "cup bigcup", "∩": "cap", "∅": "emptyset varnothing", "∞": "infty", "±": "pm", "∓": "mp", "°": "degree",
    "*": "times cdot ast", "/": "div", "π": "pi", "|": "vert lvert rvert mid", "⦃": "lbrace", "⦄": "rbrace",
    "[": "lbrack", "]": "rbrack", "(": "lparen langle", ")": "rparen rangle", "€": "euro", "£": "pounds textsterling",
    "$": "textdollar", "⇒": "implies Rightarrow Longrightarrow", " or ": "lor vee", " ∧ ": "land wedge",
    "%": "percent", "…": "ldots dots cdots dotsc", ":": "colon", "ℝ": "R", "ℤ": "Z", "ℕ": "N", "ℚ": "Q", "μ": "mu", "Ω": "Omega",
}  # fmt: skip
COMMANDS = {name: kept for kept, names in _SAME.items() for name in names.split()}
COMMANDS["mathbb"] = "\\mathbb"

LATEX = {
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∞": r"\infty ", "π": r"\pi ", "⦃": r"\{", "⦄": r"\}", "*": r"\cdot ",
    "°": "", "∅": r"\emptyset ", "∪": r"\cup ", "∩": r"\cap ", "μ": r"\mu ", "Ω": r"\Omega ", "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ", "φ": r"\phi ", "ω": r"\omega ",
    "δ": r"\delta ", "ε": r"\epsilon ", "σ": r"\sigma ", "ρ": r"\rho ", "τ": r"\tau ",
}  # fmt: skip
"""What a parser of LaTeX reads in place of a character."""

NUMBER_SETS = dict(zip("RZNQC", "ℝℤℕℚℂ", strict=True))
"""``\\mathbb{R}`` and its like."""

MONEY = "$€£¥₹₽₩₪₫₺₿฿₦₱"
