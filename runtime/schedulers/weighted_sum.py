"""What multistep formulas come down to: arrays times numbers, added up."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .base import Array


def weighted_sum(weights: Sequence[Any] | Array, arrays: Sequence[Array]) -> Array:
    """The sum of arrays times their weights, in the arrays' dtype and from left to right.

    One new array is made for the sum and one for the products: large ones cost as much to get as to fill.

    Args:
        weights: numbers, one per array.
        arrays: at least one, all of one shape.
    """
    dtype = np.result_type(*arrays)
    total: Array = np.multiply(arrays[0], dtype.type(weights[0]), dtype=dtype)
    product: Array | None = None
    for weight, array in zip(weights[1:], arrays[1:], strict=True):
        product = np.multiply(array, dtype.type(weight), out=product, dtype=dtype)
        total += product
    return total
