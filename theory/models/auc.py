"""T15: how far the AUC behind M3 can move when no score moves by more than a bound."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.claims import claim


class AucRange(NamedTuple):
    """The AUC as scored, and the smallest and largest that a change of the scores can make of it."""

    low: float
    auc: float
    high: float


def auc(positive: NDArray[Any], negative: NDArray[Any]) -> float:
    """Return P[positive > negative] + P[equal] / 2 over all pairs, Mann & Whitney's U; exact but for one rounding.

    Args:
        positive: scores of the class that should score higher, (n,), n >= 1.
        negative: scores of the other, (m,), m >= 1.

    Raises:
        ValueError: a class is empty, not a vector, or holds a score that is not finite.
    """
    p, n = _scores("positive", positive), np.sort(_scores("negative", negative))
    below = np.searchsorted(n, p, side="left").astype(np.int64)
    not_above = np.searchsorted(n, p, side="right").astype(np.int64)
    return int((below + not_above).sum()) / (2 * p.size * n.size)


@claim("T15", kind="exact", source="order of a pair; Mann & Whitney 1947 for the AUC")
def auc_range(positive: NDArray[Any], negative: NDArray[Any], change: float) -> AucRange:
    """AUC' lies in [AUC(p - c, n + c), AUC(p + c, n - c)] if no score moves by more than c: both ends attained.

    Only pairs within 2 c can change their order, so |AUC' - AUC| is at most their mass; this range is never wider.
    MinK is a mean of log-probabilities and moves by at most their largest change, which is at most twice the largest
    change of a logit. M3 = 100 (AUC / AUC_retrained - 1) moves by 100 / AUC_retrained times as much.

    Args:
        positive: scores of the class that should score higher, (n,).
        negative: scores of the other, (m,).
        change: c, >= 0, in the units of the scores.

    Returns:
        The range; its ends are rounded outward, by an ulp of each score.

    Raises:
        ValueError: the change is negative or not finite, or `auc` refuses the scores.
    """
    if not (np.isfinite(change) and change >= 0):
        raise ValueError(f"change must be finite and not negative, got change={change!r}")
    p, n = _scores("positive", positive), _scores("negative", negative)
    now = auc(p, n)
    if change == 0:
        return AucRange(now, now, now)
    low = auc(np.nextafter(p - change, -np.inf), np.nextafter(n + change, np.inf))
    high = auc(np.nextafter(p + change, np.inf), np.nextafter(n - change, -np.inf))
    return AucRange(_outward(low, -np.inf), now, min(1.0, _outward(high, np.inf)))


@claim("T15", kind="exact", source="mass of the pairs that can change their order")
def auc_change_upper_bound(positive: NDArray[Any], negative: NDArray[Any], change: float) -> float:
    """|AUC' - AUC| <= P[|p - n| <= 2 c] over pairs, if no score moves by more than c; rounded up.

    Args:
        positive: scores of the class that should score higher, (n,).
        negative: scores of the other, (m,).
        change: c, >= 0; at 0 nothing moves and the bound is 0, tied pairs or not.

    Raises:
        ValueError: as `auc_range`.
    """
    if not (np.isfinite(change) and change >= 0):
        raise ValueError(f"change must be finite and not negative, got change={change!r}")
    p, n = _scores("positive", positive), np.sort(_scores("negative", negative))
    if change == 0:
        return 0.0
    reach = 2 * change
    first = np.searchsorted(n, np.nextafter(p - reach, -np.inf), side="left")
    last = np.searchsorted(n, np.nextafter(p + reach, np.inf), side="right")
    mass = int((last - first).sum()) / (p.size * n.size)
    return min(1.0, _outward(mass, np.inf))


def _outward(value: float, side: float) -> float:
    return max(0.0, float(np.nextafter(value, side)))


def _scores(name: str, values: NDArray[Any]) -> NDArray[Any]:
    scores = np.asarray(values, np.float64)
    if scores.ndim != 1 or scores.size == 0:
        raise ValueError(f"{name} must be a vector of scores, got shape={scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(f"{name} must be finite, got nan or inf")
    return scores
