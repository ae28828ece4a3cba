"""T16: how much of the removed knowledge comes back."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.claims import claim

RESAMPLES = 2_000
LEVEL = 0.95


class Recovery(NamedTuple):
    """rho with its paired bootstrap; `defined` is False while the denominator is not separated from 0."""

    rho: float
    low: float
    high: float
    stderr: float
    defined: bool


@claim("T16", kind="exact", source="definition; percentile bootstrap, Efron 1979")
def recovered_fraction(
    unlearned: NDArray[Any], quantized: NDArray[Any], quantized_target: NDArray[Any], *, seed: int
) -> Recovery:
    """Rho = (m(Q(w')) - m(w')) / (m(Q(w)) - m(w')): 0 as unlearned, 1 as the target at the same precision.

    Items are resampled together, so their difficulty cancels. Where the interval of the denominator holds 0 there is
    nothing to recover: the point estimate is given, `defined` is False, and the interval is (-inf, inf).

    Args:
        unlearned: the metric of each item on w', (n,), n >= 2.
        quantized: on Q(w'), the same items.
        quantized_target: on Q(w), the same items.
        seed: of the resampling.

    Raises:
        ValueError: the lengths differ, there are fewer than two items, or a metric is not finite.
    """
    u, q, t = (np.asarray(x, np.float64) for x in (unlearned, quantized, quantized_target))
    if not (u.shape == q.shape == t.shape and u.ndim == 1 and u.size >= 2):
        raise ValueError(
            f"items must be three equal vectors of n >= 2, got {u.shape}, {q.shape}, {t.shape}"
        )
    if not all(np.isfinite(x).all() for x in (u, q, t)):
        raise ValueError("the metric of every item must be finite, got nan or inf")
    draws = np.random.default_rng(seed).integers(u.size, size=(RESAMPLES, u.size))
    gained, gap = (q - u)[draws].mean(axis=1), (t - u)[draws].mean(axis=1)
    tail = (1 - LEVEL) / 2
    gap_low, gap_high = np.quantile(gap, [tail, 1 - tail])
    point = float((q - u).mean() / (t - u).mean()) if (t - u).mean() else math.nan
    if gap_low <= 0 <= gap_high:
        return Recovery(point, -math.inf, math.inf, math.inf, False)
    ratios = gained[gap != 0] / gap[gap != 0]
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Recovery(point, float(low), float(high), float(ratios.std(ddof=1)), True)
