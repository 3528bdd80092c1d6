"""Compares formulas in the children of a WorkerPool, which run it as a file: it imports neither torch nor this package.

Requests are ``(relation, reference, answer, seconds)``, LaTeX formulas without ``=`` and the time for them; replies are
"yes", "no", "unreadable reference" or "timeout". math-verify's parser reads the formulas, with the case of their letters,
which math-verify itself gives up; the comparison is made here, without its rounding to six decimals.
"""

from __future__ import annotations

import logging
import re
import signal
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from latex2sympy2_extended.math_normalization import normalize_latex
from math_verify import verify
from math_verify.grader import should_treat_as_complex
from sympy import E, Expr, Float, I, Rational, Symbol, nan, zoo

_NORMALIZATION = NormalizationConfig(
    basic_latex=True,
    units=False,  # it takes a trailing t, h or s of a formula for a unit
    malformed_operators=False,
    nits=False,
    boxed="none",
)
_CONVERSION = ConversionConfig(lowercase_symbols=False)
_GAMMA = re.compile(r"\\(gamma|Gamma)(?![A-Za-z])(?!\s*[({_])")
"""The letter, which the parser takes for Euler's constant in either case."""
_POINTS = [Rational(point, 97) for point in (37, -71, 193, -311, 149, 401, -23, 263, 89, -157)]
"""Where two formulas with variables are compared: neither whole nor round, of both signs."""
DIGITS = 30
"""Decimal digits to which decimals are compared."""
MOST_DIGITS = 400
"""To which the difference of two exact formulas is evaluated before it is taken for zero."""
POINT_DIGITS = 60
"""The same at each point of formulas with variables, where nothing cancels but what is equal."""
SURE_BITS = 20
"""Of a difference that is not zero; sympy reaches all that it is asked for, or of rounding alone only a few."""
ROUNDED = Rational(1, 10**6)
"""Relative difference from which two decimals are different."""
ABOUT = Rational(1, 100)
"""The same for decimals beside the formula that they round."""


class OutOfTimeError(BaseException):
    """Not an Exception: sympy and math-verify swallow those."""


def _raise_out_of_time(signum: int, frame: Any) -> None:
    raise OutOfTimeError


def _parse(text: str) -> Any | None:
    text = normalize_latex(_GAMMA.sub(r"\\variable{\1}", text), _NORMALIZATION)
    try:
        return latex2sympy(
            text,
            is_real=not should_treat_as_complex(text),
            normalization_config=None,
            conversion_config=_CONVERSION,
        )
    except Exception:  # whatever its grammar makes of the text
        return None


def compare(relation: str, reference: str, answer: str) -> str:
    """Whether two formulas are "equal", "about" so, "proportional" (by any factor) or of "same sign" (a positive one)."""
    gold = _parse(reference)
    if gold is None or gold in (nan, zoo):
        return "unreadable reference"
    given = _parse(answer)
    if given is None:
        return "no"
    if not (isinstance(gold, Expr) and isinstance(given, Expr)):
        return "yes" if relation == "equal" and verify(gold, given, timeout_seconds=None) else "no"
    return "yes" if _agree(relation, _prepared(gold), _prepared(given)) else "no"


def _prepared(formula: Expr) -> Expr:
    """Worked out, with the constants e and i, and with symbols that are one whether or not the formula was thought real."""
    formula = formula.doit()
    constants = {"i": I, "e": E}
    return formula.subs({symbol: constants.get(symbol.name, Symbol(symbol.name)) for symbol in formula.free_symbols})


def _agree(relation: str, gold: Expr, given: Expr) -> bool:
    symbols = sorted(gold.free_symbols | given.free_symbols, key=lambda symbol: symbol.name)
    tolerance = ROUNDED if gold.has(Float) or given.has(Float) else None
    if not symbols and relation == "equal":
        return _same_value(gold, given, tolerance)
    if relation == "about":
        return not symbols and _same_value(gold, given, ABOUT)
    if gold == given:
        return True
    pairs = [pair for pair in (_at(gold, given, symbols, shift) for shift in range(len(_POINTS))) if pair is not None]
    if len(pairs) < 3:
        return relation == "equal" and bool(verify(gold, given, timeout_seconds=None))
    if relation == "equal":
        return all(_near(a, b, tolerance) for a, b in pairs)
    factors = [b / a for a, b in pairs if a.evalf(DIGITS) != 0]
    if len(factors) < 3 or factors[0] == 0 or (relation == "same sign" and not factors[0].evalf(DIGITS).is_positive):
        return False
    return all(_near(factors[0], factor, tolerance) for factor in factors)


def _at(gold: Expr, given: Expr, symbols: list[Symbol], shift: int) -> tuple[Any, Any] | None:
    """Both formulas at one point, where both are real numbers there, or formulas with i and any numbers."""
    point = {symbol: _POINTS[(shift + 3 * place) % len(_POINTS)] + place for place, symbol in enumerate(symbols)}
    there = [formula.subs(point) for formula in (gold, given)]
    values = [formula.evalf(DIGITS) for formula in there]
    complex_ones = gold.has(I) or given.has(I)
    if not all(value.is_number and value.is_finite and (value.is_real or complex_ones) for value in values):
        return None
    return there[0], there[1]


def _same_value(gold: Expr, given: Expr, tolerance: Rational | None) -> bool:
    if isinstance(gold, Rational) and isinstance(given, Rational) and tolerance is None:
        return gold == given
    one, other = gold.evalf(DIGITS), given.evalf(DIGITS)
    if not (one.is_finite and other.is_finite):
        return bool(one == other) and one is not nan
    return _near(gold, given, tolerance, MOST_DIGITS)


def _near(reference: Any, value: Any, tolerance: Rational | None, most_digits: int = POINT_DIGITS) -> bool:
    """Whether two numbers differ by no more than a share of the reference; without one, not at all."""
    if tolerance is None:
        return _is_zero(reference - value, most_digits)
    reference, value = reference.evalf(DIGITS), value.evalf(DIGITS)
    size = abs(reference).evalf(DIGITS)
    # Decimals: a millionth, or of small values a hundred-thousandth part, as for plain numbers. Never 1e-7 for 0.
    bound = min(tolerance, 10 * tolerance * size) if tolerance == ROUNDED else tolerance * size
    return bool(abs(reference - value).evalf(DIGITS) <= bound)


def _is_zero(difference: Expr, most_digits: int) -> bool:
    """Of an exact number: sympy raises its precision until the value is known, or until that many digits cancelled."""
    if isinstance(difference, Rational):
        return bool(difference == 0)
    parts = difference.evalf(DIGITS, maxn=most_digits).as_real_imag()
    return not any(part != 0 and getattr(part, "_prec", DIGITS) > SURE_BITS for part in parts)


def answer(request: tuple[str, str, str, float]) -> str:
    """The reply to one request."""
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGALRM, _raise_out_of_time)
    *formulas, seconds = request
    # The alarm interrupts Python code. Code that it cannot interrupt is killed by the pool.
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        reply = compare(*formulas)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except OutOfTimeError:
        reply = "timeout"
    except Exception:  # what sympy raises on text of a model, RecursionError and MemoryError among it
        reply = "no"
    signal.setitimer(signal.ITIMER_REAL, 0)
    return reply
