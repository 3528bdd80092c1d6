"""What rewards return: every container and every kind of number."""

from __future__ import annotations

import decimal
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from trl_shapes import add, shape, text_of

LENGTHS = [3.0, 0.5, -1.0, 0.0, 2.25, 7.0]


def returning(name: str, value: Callable[[], Any]) -> None:
    """Adds a reward that returns ``value()``, a new one for each call."""

    def reward(completions: Any, **kwargs: Any) -> Any:
        return value()

    reward.__name__ = name
    add(name, lambda: reward)


@shape
def generator_function(completions: Any, **kwargs: Any) -> Iterator[float]:
    for completion in completions:
        yield float(len(text_of(completion)))


returning("list_of_floats", lambda: LENGTHS)
returning("tuple_of_floats", lambda: tuple(LENGTHS))
returning("deque", lambda: deque(LENGTHS))
returning("range", lambda: range(6))
returning("generator_expression", lambda: (x for x in LENGTHS))
returning("map_object", lambda: map(float, "123456"))
returning("filter_object", lambda: filter(lambda x: x is not None, LENGTHS))
returning("zip_star_first", lambda: next(zip(*[(x, 1) for x in LENGTHS], strict=True)))
returning("reversed", lambda: reversed(LENGTHS))
returning("dict_values", lambda: dict(enumerate(LENGTHS)).values())
returning("dict_keys", lambda: dict.fromkeys(LENGTHS).keys())
returning("numpy_float64", lambda: np.array(LENGTHS))
returning("numpy_float16", lambda: np.array(LENGTHS, dtype=np.float16))
returning("numpy_ints", lambda: np.arange(6))
returning("numpy_bools", lambda: np.array([True, False] * 3))
returning("numpy_with_nan", lambda: np.array([1.0, np.nan, 2.0, 3.0, np.nan, 4.0]))
returning("numpy_column", lambda: np.array(LENGTHS).reshape(6, 1))
returning("list_of_numpy_scalars", lambda: list(np.array(LENGTHS, dtype=np.float32)))
returning("list_of_0d_arrays", lambda: [np.array(x) for x in LENGTHS])
returning("torch_tensor", lambda: torch.tensor(LENGTHS))
returning("torch_bfloat16", lambda: torch.tensor(LENGTHS, dtype=torch.bfloat16))
returning("torch_bools", lambda: torch.tensor([True, False] * 3))
returning("torch_with_gradient", lambda: torch.tensor(LENGTHS, requires_grad=True))
returning("torch_column", lambda: torch.tensor(LENGTHS).reshape(6, 1))
returning("list_of_0d_tensors", lambda: [torch.tensor(x) for x in LENGTHS])
returning("list_of_one_element_tensors", lambda: [torch.tensor([x]) for x in LENGTHS])
returning("torch_tensor_tolist", lambda: torch.tensor(LENGTHS).tolist())
returning("bools", lambda: [True, False, True, True, False, False])
returning("bools_and_none", lambda: [True, None, False, None, True, False])
returning("ints", lambda: [1, 0, -3, 7, 2, 10])
returning("ints_beyond_64_bits", lambda: [2**70, -(2**65), 0, 1, 2, 3])
returning("mixed_numbers", lambda: [1, 2.5, True, np.int64(3), torch.tensor(4.0), None])
returning("decimals", lambda: [decimal.Decimal("0.1"), decimal.Decimal(2), None, *map(decimal.Decimal, "345")])
returning("nan", lambda: [1.0, math.nan, 0.0, float("nan"), 2.0, 3.0])
returning("none_and_nan", lambda: [None, math.nan, 0.0, None, 2.0, 3.0])
returning("all_none", lambda: [None] * 6)
returning("nan_as_numpy_scalar", lambda: [np.float64("nan"), np.nan, 1.0, 2.0, 3.0, 4.0])
returning("tiny_and_large", lambda: [1e-30, 1e30, -1e30, 1e-45, 0.1, 1 / 3])

# Refused by both.
returning("too_few", lambda: [1.0, 2.0])
returning("one_number", lambda: 1.0)
returning("strings", lambda: ["1.0"] * 6)
returning("one_string", lambda: "123456")
returning("complex", lambda: [1j] * 6)
returning("dictionaries", lambda: [{"score": 1.0}] * 6)

# Taken by one of the two: see DIFFERENCES.
returning("nothing", lambda: None)
returning("dictionary", lambda: dict.fromkeys(LENGTHS, "why"))
returning("set", lambda: set(LENGTHS))
returning("pairs", lambda: [[1.0, 2.0]] * 6)
returning("infinity", lambda: [math.inf, 1.0, 2.0, 3.0, 4.0, 5.0])
returning("ints_beyond_float", lambda: [10**400, -(10**400), 0, 1, 2, 3])
returning("beyond_float32", lambda: [1e39, -1e39, 0.0, 1.0, 2.0, 3.0])


@shape
def raises_on_one_completion(completions: Any, answer: list[str], **kwargs: Any) -> list[float]:
    return [float(a) for a in answer]  # \\frac{1}{2} is no float
