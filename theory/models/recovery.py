"""T16: how much of the removed knowledge comes back."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

from unforgotten.theory.claims import claim
from unforgotten.theory.models.bootstrap import LEVEL, RESAMPLES, checked, ratio_of_means

__all__ = ["LEVEL", "RESAMPLES", "Recovery", "recovered_fraction"]


class Recovery(NamedTuple):
    """rho with its paired bootstrap; `defined` is False while the denominator is not separated from 0."""

    rho: float
    low: float
    high: float
    stderr: float
    defined: bool


@claim("T16", kind="exact", source="definition; its interval by the percentile bootstrap, Efron 1979")
def recovered_fraction(
    unlearned: NDArray[Any], quantized: NDArray[Any], quantized_target: NDArray[Any], *, seed: int
) -> Recovery:
    """Rho = (m(Q(w')) - m(w')) / (m(Q(w)) - m(w')): 0 as unlearned, 1 as the target at the same precision.

    rho is exact, its interval is not. Items, and seeds where there are several, are resampled together, so their
    difficulty cancels; a percentile interval of few items is too short: it misses 20, 12, 8 and 6 % at n = 4, 8, 16 and
    32 for even returns, and half where items come back all or nothing. `fieller_interval` holds what it promises there,
    and is what an audit prints and a new run writes; rows of published runs are of this one. Where the interval of the
    denominator holds 0 there is nothing to recover: the point estimate is given, `defined` is False, and the interval
    is (-inf, inf); of a removal that is none, `defined` is True in 9 % at n = 16. Neither the unit nor the origin nor
    the direction of the metric matters.

    Args:
        unlearned: the metric of each item on w', (n,), n >= 2, or (seeds, n).
        quantized: metric of these items on Q(w'), same shape.
        quantized_target: metric of these items on Q(w), same shape.
        seed: seed of the resampling.

    Raises:
        ValueError: the shapes differ, there are fewer than two items, or a metric is not finite.
    """
    u, q, t = checked(unlearned, quantized, quantized_target)
    return Recovery(*ratio_of_means(q - u, t - u, seed=seed))
