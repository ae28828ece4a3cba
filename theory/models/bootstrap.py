"""T16: the paired bootstrap over items and seeds, and the ratio of two means with an honest "undefined"."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2_000
LEVEL = 0.95


class Ratio(NamedTuple):
    """A ratio of means; `defined` is False while its denominator is not separated from 0.

    Then the interval is (-inf, inf), and `value` the plain quotient, for the eye only; nan where it is x / 0.
    """

    value: float
    low: float
    high: float
    stderr: float
    defined: bool


def checked(*metrics: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Return the metrics as float64 (seeds, items); a vector is one seed.

    Raises:
        ValueError: the shapes differ, there are fewer than two items, or a metric is not finite.
    """
    arrays = tuple(np.asarray(x, np.float64) for x in metrics)
    shapes = {x.shape for x in arrays}
    shape = arrays[0].shape
    if not (len(shapes) == 1 and len(shape) in (1, 2) and shape[0] >= 1 and shape[-1] >= 2):
        raise ValueError(
            "items must be equal vectors of n >= 2, or (seeds, items), got " + ", ".join(str(x.shape) for x in arrays)
        )
    if not all(np.isfinite(x).all() for x in arrays):
        raise ValueError("the metric of every item must be finite, got nan or inf")
    return tuple(x.reshape(-1, shape[-1]) for x in arrays)


def resampled_means(*metrics: NDArray[Any], seed: int) -> NDArray[Any]:
    """Return the means of the metrics over equal resampled items and, if several, seeds: (metrics, RESAMPLES).

    Items and seeds are drawn apart, as they are crossed: every seed met every item. The variance is then no smaller
    than the truth's in the mean (Owen 2007, the pigeonhole bootstrap), but few seeds tell little of seeds.

    Args:
        *metrics: metrics of the items, (seeds, items) each, from `checked`.
        seed: seed of the resampling.
    """
    seeds, items = metrics[0].shape
    rng = np.random.default_rng(seed)
    draws = rng.integers(items, size=(RESAMPLES, items))
    chosen = rng.integers(seeds, size=(RESAMPLES, seeds))
    each = (np.stack([row[draws].mean(axis=1) for row in x], axis=1) for x in metrics)
    return np.stack([np.take_along_axis(m, chosen, axis=1).mean(axis=1) for m in each])


def interval(samples: NDArray[Any]) -> tuple[float, float]:
    """Return the percentile interval at LEVEL."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)


def ratio_of_means(numerator: NDArray[Any], denominator: NDArray[Any], *, seed: int) -> Ratio:
    """Return mean(numerator) / mean(denominator), undefined while the denominator's interval holds 0.

    Args:
        numerator: metric of each item, (seeds, items), from `checked`.
        denominator: metric of the items of `numerator`, same shape.
        seed: seed of the resampling.
    """
    bottom = float(denominator.mean())
    value = float(numerator.mean()) / bottom if bottom else math.nan
    above, below = resampled_means(numerator, denominator, seed=seed)
    low, high = interval(below)
    if low <= 0 <= high:
        return Ratio(value, -math.inf, math.inf, math.inf, False)
    ratios = above[below != 0] / below[below != 0]
    return Ratio(value, *interval(ratios), float(ratios.std(ddof=1)), True)
