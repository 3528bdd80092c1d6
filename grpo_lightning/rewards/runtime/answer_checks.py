"""The checks that a reward's answer passes on its way in. Without torch: a reward's own process runs them too."""

from __future__ import annotations

import math
from collections.abc import Iterator, KeysView, Sequence, ValuesView
from numbers import Real
from typing import Any

from grpo_lightning.rewards.base import RewardContractError

LARGEST = 3.4028234663852886e38
"""The largest float32: TRL and the advantages compute in it."""
LIMIT = 1e150
"""Of a reward's size; rewards are float64, and standard deviations add up squares."""


class ListedReward(float):
    """The sum of the rewards that a list gave for one completion, which remembers them.

    Example:
        >>> ListedReward([0.5, math.nan, 1.0])
        1.5
    """

    entries: tuple[float, ...]
    """One per token or turn, NaN for None."""

    def __new__(cls, entries: Sequence[float]) -> ListedReward:
        """Of the entries, NaN for None."""
        known = [entry for entry in entries if not math.isnan(entry)]
        listed = super().__new__(cls, math.fsum(known) if known else math.nan)
        listed.entries = tuple(entries)
        return listed

    def __reduce__(self) -> tuple[type[ListedReward], tuple[tuple[float, ...]]]:
        return ListedReward, (self.entries,)  # from a reward's own process


def checked_values(result: Any, count: int, name: str) -> list[float]:
    """``count`` floats from what a reward returned, NaN for None; for a list of a completion a :class:`ListedReward`.

    Args:
        result: None, or a sequence, iterator, array or tensor of numbers, None, and lists of numbers and None. A NaN is as
            good as None.
        count: Completions that the reward was called with.
        name: The reward's, for the error.

    Raises:
        RewardContractError: Naming the reward and what was wrong: count, type or infinity.

    Example:
        >>> checked_values([True, 0, None], count=3, name="accuracy")
        [1.0, 0.0, nan]
    """
    if result is None:
        return [math.nan] * count
    values = _as_sequence(result, name)
    if len(values) != count:
        raise RewardContractError(
            f"Reward '{name}' returned {len(values)} values for {count} completions. "
            "Return exactly one float or None per completion."
        )
    return [_as_float(value, row, name) for row, value in enumerate(values)]


def _as_sequence(result: Any, name: str) -> Sequence[Any]:
    if _is_array(result):
        if result.ndim == 2 and result.shape[1] == 1:  # (N, 1), as the head of a model gives it
            result = result.reshape(-1)
        if result.ndim != 1:
            raise RewardContractError(
                f"Reward '{name}' returned an array of shape {tuple(result.shape)}. Return one value per completion."
            )
        return result.tolist()
    if isinstance(result, Iterator | KeysView | ValuesView):  # whose code runs now, in the thread of the call
        return list(result)
    if isinstance(result, Sequence) and not isinstance(result, str | bytes):
        return result
    hint = " Wrap the value in a list, one per completion." if isinstance(result, Real) else ""
    raise RewardContractError(
        f"Reward '{name}' returned a {type(result).__name__}, expected a list with one float or None per "
        f"completion.{hint}"
    )


def _as_float(value: Any, row: int, name: str) -> float:
    if value is None:
        return math.nan
    if _is_array(value) and math.prod(value.shape) != 1 and value.ndim == 1:
        value = value.tolist()
    if isinstance(value, list | tuple) and value:
        return ListedReward([_as_number(entry, row, name) for entry in value])
    return _as_number(value, row, name)


def _as_number(value: Any, row: int, name: str) -> float:
    if value is None:
        return math.nan
    if _is_array(value) and math.prod(value.shape) == 1:  # a scalar, or an array or tensor of one element
        value = value.item()
    if isinstance(value, str | bytes | complex) or not hasattr(value, "__float__"):
        raise RewardContractError(
            f"Reward '{name}' returned {value!r:.80} ({type(value).__name__}) for completion {row}, "
            "expected a float or None, or a list of them with one entry per token or per turn."
        )
    try:
        number = float(value)
    except OverflowError:  # an integer with hundreds of digits
        number = LARGEST if value > 0 else -LARGEST
    except (TypeError, ValueError) as error:  # such as an array of several elements, or a formula without a value
        raise RewardContractError(
            f"Reward '{name}' returned {value!r:.80} ({type(value).__name__}) for completion {row}, which is no number: "
            f"{error}"
        ) from error
    if LIMIT < abs(number) < math.inf:
        raise RewardContractError(
            f"Reward '{name}' returned {number:g} for completion {row}, whose square no float holds, so that every advantage of "
            "its group would be NaN. Scale it down."
        )
    if math.isinf(number):
        raise RewardContractError(
            f"Reward '{name}' returned {number} for completion {row}. Return None where the reward does not apply."
        )
    return number


def _is_array(value: Any) -> bool:
    """True for arrays and tensors of any library, and for NumPy's scalars."""
    return hasattr(value, "ndim") and hasattr(value, "tolist")
