"""T13: how surely a sum of independent terms stays near its mean: the gating noise g·D of many weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.claims import claim

U64 = 2.0**-53


@claim("T13", kind="law", source="Bernstein 1924; Boucheron, Lugosi & Massart 2013, cor. 2.11")
def bernstein_tail_upper_bound(x: float, variance: float, largest: float) -> float:
    """P[|S - E S| >= x] <= 2 exp(-(x^2 / 2) / (V + M x / 3)), S a sum of independent X_i, |X_i - E X_i| <= M.

    For S = g·D: V = Var[g·D] or a bound of it, M = max |g_i Delta_i|, as D_i takes two values a step apart.

    Args:
        x: deviation, >= 0.
        variance: V >= 0, of the sum.
        largest: M >= 0.

    Returns:
        A probability, at most 1, rounded up.

    Raises:
        ValueError: an argument is negative or not finite.
    """
    _check(x=x, variance=variance, largest=largest)
    if x == 0:
        return 1.0
    spread = variance + largest * x / 3
    exponent = -(x / spread) * x / 2 if spread else -math.inf
    # five roundings of the exponent, magnified by it, and exp to an ulp
    return min(1.0, float(np.nextafter(2 * math.exp(exponent * (1 - 8 * U64)), np.inf)))


@claim("T13", kind="law", source="Bernstein's inequality solved for x")
def bernstein_radius(variance: float, largest: float, alpha: float) -> float:
    """P[|S - E S| >= x] <= alpha at x = M L / 3 + sqrt((M L / 3)^2 + 2 V L), L = ln(2 / alpha); rounded up.

    With many weights of like size V grows as n and M stays, so the radius is about sqrt(2 V L): small beside a mean
    that grows as n. That is why gating noise averages out.

    Args:
        variance: V >= 0, of the sum.
        largest: M >= 0.
        alpha: probability in (0, 1).

    Raises:
        ValueError: an argument is out of its range.
    """
    _check(variance=variance, largest=largest)
    log = _log_of(2, alpha)
    shift = largest * log / 3
    return _up(shift + math.hypot(shift, math.sqrt(2 * log) * math.sqrt(variance)))


@claim("T13", kind="law", source="Maurer & Pontil 2009, thm 11, for both sides")
def empirical_bernstein_radius(samples: NDArray[Any], low: float, high: float, alpha: float) -> float:
    """P[|mean - E mean| >= x] <= alpha, x = sqrt(2 v L / n) + 7 (high - low) L / (3 (n - 1)), L = ln(4 / alpha).

    v is the sample variance with n - 1: no variance need be known, so U need not hold. Samples are independent and
    may have different means.

    Args:
        samples: independent samples, (n,), n >= 2, such as n g_i D_i, whose mean is g·D.
        low: smallest possible sample.
        high: largest possible sample.
        alpha: probability in (0, 1).

    Returns:
        The radius in the units of the samples, rounded up.

    Raises:
        ValueError: there are fewer than two samples, one is outside [low, high], or alpha is out of its range.
    """
    x = np.asarray(samples, np.float64)
    if x.ndim != 1 or x.size < 2:
        raise ValueError(f"samples must be a vector of n >= 2, got shape={x.shape}")
    if not (np.isfinite([low, high]).all() and ((low <= x) & (x <= high)).all()):
        raise ValueError(f"samples must be in [low, high], got low={low!r} and high={high!r}")
    log, n, width = _log_of(4, alpha), x.size, float(high) - float(low)
    # a sum of n squares in units of the range, which cannot underflow to matter; the mean's rounding only adds to it
    share = (x - x.mean()) / width if width else np.zeros(n)
    variance = float(np.square(share).sum()) / (n - 1) * (1 + (n + 8) * U64)
    return _up(width * (math.sqrt(2 * variance * log / n) + 7 * log / (3 * (n - 1))))


def _check(**sizes: float) -> None:
    for name, value in sizes.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and not negative, got {name}={value!r}")


def _log_of(sides: int, alpha: float) -> float:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1), got alpha={alpha!r}")
    return math.log(sides) - math.log(alpha)


def _up(value: float) -> float:
    return float(np.nextafter(value * (1 + 16 * U64), np.inf))
