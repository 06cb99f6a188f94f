"""What multistep formulas come down to: arrays times numbers, added up."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..random import Array


def weighted_sum(weights: Sequence[Any] | Array, arrays: Sequence[Array]) -> Array:
    """The sum of arrays times their weights, in the arrays' dtype, or float32 if that is wider.

    One new array is made for the sum and one for the products, if any weight but the first is not 1: a pass over a
    large array costs most where it fills new memory.

    Args:
        weights: numbers, one per array.
        arrays: at least one, all of one shape.
    """
    dtype = np.result_type(np.float32, *arrays)
    terms = [(dtype.type(weight), array) for weight, array in zip(weights, arrays, strict=True)]
    terms.sort(key=lambda term: bool(term[0] == 1))
    total: Array = np.multiply(terms[0][1], terms[0][0], dtype=dtype)
    product: Array | None = None
    for weight, array in terms[1:]:
        if weight != 1:
            array = product = np.multiply(array, weight, out=product, dtype=dtype)
        total += array
    return total


def mixture(first_weight: Any, first: Array, second_weight: Any, second: Array) -> Array:
    """The `weighted_sum` of two arrays with weights not below 0: no memory is needed but the sum's.

    It is kept in units of the larger weight until the end. With one below 0, where the terms may cancel, the rounding
    of the weights' ratio would show.

    Args:
        first_weight: a number.
        first: an array.
        second_weight: a number.
        second: an array of the first's shape.
    """
    dtype = np.result_type(np.float32, first, second)
    if first_weight > second_weight:
        first_weight, first, second_weight, second = second_weight, second, first_weight, first
    total: Array = np.multiply(first, dtype.type(first_weight / second_weight), dtype=dtype)
    total += second
    total *= dtype.type(second_weight)
    return total
