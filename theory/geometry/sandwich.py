"""T3: what survives of one update lies between its size less and plus the rounding errors before and after."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.claims import claim

U64 = 2.0**-53
SUM_ROUNDINGS = 4  # two sums, the factor, the product


class Sandwich(NamedTuple):
    """Bounds of |D|, elementwise; rounded outward."""

    lower: NDArray[Any]
    upper: NDArray[Any]


@claim("T3", kind="exact", source="triangle inequality")
def displacement_sandwich(delta: NDArray[Any], error: NDArray[Any], error_new: NDArray[Any]) -> Sandwich:
    """| |D| - |delta| | <= e(w) + e(w'), e(w) = |Q(w) - w|: any quantizer, any grid, fixed or adaptive.

    From D - delta = (Q(w') - w') - (Q(w) - w). Both ends are attained. With e <= step / 2 it says that no update can
    vanish once it exceeds one step, and that none grows by more than one; clipped weights have a larger e.

    Args:
        delta: w' - w, float64, any shape; exact, as differences of float32 numbers of similar size are.
        error: Q(w) - w, or a bound of its size, same shape.
        error_new: Q(w') - w', or a bound of its size, same shape.

    Raises:
        ValueError: the shapes differ.
    """
    size, noise, noise_new = (np.abs(np.asarray(x, np.float64)) for x in (delta, error, error_new))
    if not size.shape == noise.shape == noise_new.shape:
        raise ValueError(
            f"delta and the errors must have one shape, got {size.shape}, {noise.shape} and {noise_new.shape}"
        )
    upper = (size + noise + noise_new) * (1 + SUM_ROUNDINGS * U64)
    slack = SUM_ROUNDINGS * U64 * (size + noise + noise_new)
    lower = np.maximum(size - noise - noise_new - slack, 0.0)
    return Sandwich(lower, np.nextafter(upper, np.inf))


@claim("T3", kind="exact", source="triangle inequality in l2")
def displacement_norm_upper_bound(delta: NDArray[Any], error: NDArray[Any], error_new: NDArray[Any]) -> float:
    """|D|_2 <= |delta|_2 + |e(w)|_2 + |e(w')|_2, over a whole tensor; rounded up.

    Args:
        delta: w' - w, any shape.
        error: Q(w) - w, any shape.
        error_new: Q(w') - w', any shape.
    """
    total = sum(float(np.linalg.norm(np.ravel(x))) for x in (delta, error, error_new))
    return float(np.nextafter(total * (1 + (np.size(delta) + 8) * U64), np.inf))
