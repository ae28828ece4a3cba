"""T15: how far a metric can move when the output distributions of two models have a known divergence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.claims import claim

U64 = 2.0**-53
CROSSING = 1.59362426004004  # the KL above which Bretagnolle-Huber is the smaller of the two


@claim("T15", kind="exact", source="Pinsker 1964, with Csiszar's constant; Bretagnolle & Huber 1979, lemma 2.1")
def total_variation_upper_bound(kl: NDArray[Any] | float) -> NDArray[Any]:
    """TV(p, q) <= min(sqrt(KL/2), sqrt(1 - exp(-KL))): Pinsker below KL = 1.594 nats, Bretagnolle-Huber above.

    TV is the largest difference of the probability of an event. Any direction of KL serves, so take the smaller.

    Args:
        kl: KL(p || q) in nats, >= 0, inf allowed; any shape.

    Returns:
        Bounds in [0, 1], same shape, rounded up.

    Raises:
        ValueError: a divergence is negative or nan.
    """
    value = np.asarray(kl, np.float64)
    if not (value >= 0).all():
        raise ValueError(f"kl must be non-negative nats, got kl={kl!r}")
    pinsker = np.sqrt(value) * math.sqrt(0.5)  # value / 2 could underflow
    smaller = np.minimum(pinsker, np.sqrt(-np.expm1(-value)))
    # two roots and a product, or expm1 to an ulp or two and a root
    bound = np.nextafter(smaller * (1 + 4 * U64), np.inf)
    return np.asarray(np.where(value > 0, np.minimum(bound, 1.0), 0.0))


@claim("T15", kind="exact", source="|E_p f - E_q f| <= (sup f - inf f) TV(p, q)")
def metric_change_upper_bound(kl: NDArray[Any] | float, low: float = 0.0, high: float = 1.0) -> float:
    """|m(p) - m(q)| <= (high - low) mean_i TV_i, for m = the mean over prompts i of an expectation of f in [low, high].

    f may depend on the whole sampled answer; then KL_i is that of whole answers, by the chain rule the expected sum of
    the tokens' KL along answers of p. By concavity the bound at the mean KL is no smaller, so one number a model is
    enough. For a metric of greedy decoding it says nothing: see `greedy`.

    Args:
        kl: divergences in nats of the prompts, any shape; a number for one.
        low: smallest value of f.
        high: largest value of f; 100 for a ROUGE in percent.

    Returns:
        The bound in the units of the metric, rounded up.

    Raises:
        ValueError: there is no prompt, a divergence is negative, or the range is empty.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"low must be at most high, got low={low!r} and high={high!r}")
    bounds = total_variation_upper_bound(kl)
    if bounds.size == 0:
        raise ValueError(f"kl must hold at least one prompt, got shape={bounds.shape}")
    mean = math.fsum(bounds.ravel()) / bounds.size
    return float(np.nextafter((high - low) * mean * (1 + 4 * U64), np.inf))
