"""In which order the rows of a decoded matrix stand: as in the model, turned, or in pairs of RoPE as llama.cpp has them.

Which it is, the weights say: the order in which the decoded matrix is nearest to the one it was made from.

>>> w = np.arange(16.0).reshape(8, 2)
>>> llama = w.reshape(1, 2, 4, 2).swapaxes(1, 2).reshape(8, 2)
>>> name, order = nearest_order(w, llama, rope_orders(8))
>>> name, bool((order(llama) == w).all())
('RoPE pairs, heads of 8', True)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Order = Callable[[Array], Array]
AS_STORED, TURNED = "as stored", "turned"
LARGEST_HEAD = 512
SAMPLED_COLUMNS = 64
"""Columns that an order is judged by."""


def as_stored(values: Array) -> Array:
    """Return the matrix as it is."""
    return values


def turned(values: Array) -> Array:
    """Return the transpose."""
    return values.T


def rope_orders(rows: int) -> Mapping[str, Order]:
    """Return the orders that rows of queries or keys may have: as stored, or in pairs, by the size of a head."""
    sizes = [size for size in range(4, min(rows, LARGEST_HEAD) + 1, 2) if rows % size == 0]
    return {AS_STORED: as_stored} | {f"RoPE pairs, heads of {size}": partial(_unpaired, size) for size in sizes}


def _unpaired(size: int, values: Array) -> Array:
    """Undo the order of `permute` in llama.cpp's converter for heads of a size."""
    rows, columns = values.shape
    return values.reshape(rows // size, size // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def nearest_order(w: Array, values: Array, orders: Mapping[str, Order]) -> tuple[str, Order]:
    """Return the order in which the values are nearest to the weights, the first of equals; and its name."""
    if len(orders) == 1:
        return next(iter(orders.items()))

    def distance(name: str) -> float:
        return float(np.square(orders[name](values)[:, :SAMPLED_COLUMNS].astype(np.float64) - seen).sum())

    seen = w[:, :SAMPLED_COLUMNS].astype(np.float64)
    best = min(orders, key=distance)
    return best, orders[best]
