"""T12: does the update avoid the thresholds (washed), or aim at them?"""

from __future__ import annotations

import math
from typing import NamedTuple

from unforgotten.theory.claims import claim


class WashTest(NamedTuple):
    """`z` is negative where fewer codes flipped than chance would; `p` bounds both sides from above."""

    z: float
    p: float


@claim(
    "T12", kind="law", source="Hoeffding 1963, thm 1, for sums of independent Bernoulli variables"
)
def wash_test(flips: int, expected: float, variance: float, weights: int) -> WashTest:
    """Under U the flips are a sum of independent Bernoulli(p_i): z = (flips - sum p_i) / sqrt(sum p_i (1 - p_i)).

    `p` is no approximation: P[mean >= x] <= exp(-n KL(x || mean p)) holds for unequal p_i; both sides, doubled.

    Args:
        flips: observed flips.
        expected: sum of p_i.
        variance: sum of p_i (1 - p_i).
        weights: number of weights, > 0.

    Returns:
        z (nan where nothing can flip) and a p-value that is never too small.
    """
    if weights <= 0:
        raise ValueError(f"weights must be positive, got weights={weights}")
    z = (flips - expected) / math.sqrt(variance) if variance > 0 else math.nan
    log_p = math.log(2) - weights * bernoulli_divergence(flips / weights, expected / weights)
    return WashTest(z, math.exp(min(0.0, log_p)))


def bernoulli_divergence(x: float, p: float) -> float:
    """KL(Bernoulli(x) || Bernoulli(p)) in nats; inf where p excludes x."""
    p = min(max(p, 0.0), 1.0)
    total = 0.0
    for a, b in ((x, p), (1.0 - x, 1.0 - p)):
        if a > 0:
            total += a * (math.log(a) - math.log(b)) if b > 0 else math.inf  # a / b may overflow
    return max(total, 0.0)
