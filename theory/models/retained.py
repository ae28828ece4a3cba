"""T16: other scores of recovery: what is retained against three references, and OpenUnlearning's robustness."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.claims import claim
from unforgotten.theory.models.bootstrap import Ratio, checked, interval, ratio_of_means, resampled_means

Direction = Literal["rises", "falls", "unclear"]


class Retained(NamedTuple):
    """m(Q(w')) over the metric of the target, of the target at the same precision, and of the retrained model."""

    of_target: Ratio
    of_quantized_target: Ratio
    of_retrained: Ratio


@claim("T16", kind="exact", source="definition; MUSE (Shi et al. 2024) reports scores against both")
def retained_ratios(
    quantized: NDArray[Any], *, target: NDArray[Any], quantized_target: NDArray[Any], retrained: NDArray[Any], seed: int
) -> Retained:
    """m(Q(w')) / m(w), m(Q(w')) / m(Q(w)) and m(Q(w')) / m(retrained), each with its paired bootstrap.

    The second takes out what quantization costs any model, the third says 1 where nothing is known that training
    without the data does not teach. Unlike rho they depend on the metric's origin; each is undefined while its
    reference is not separated from 0.

    Args:
        quantized: the metric of each item on Q(w'), (n,), n >= 2, or (seeds, n).
        target: metric of these items on w, same shape.
        quantized_target: metric of these items on Q(w), same shape.
        retrained: metric of these items on the model trained without the forget split, at full precision.
        seed: seed of the resampling.

    Raises:
        ValueError: the shapes differ, there are fewer than two items, or a metric is not finite.
    """
    q, *references = checked(quantized, target, quantized_target, retrained)
    return Retained(*(ratio_of_means(q, r, seed=seed) for r in references))


def memory_direction(target: NDArray[Any], retrained: NDArray[Any], *, seed: int) -> Direction:
    """Tell whether a metric rises or falls with memory: the sign of m(w) - m(retrained), where its interval excludes 0.

    Args:
        target: the metric of each item on the model that saw the data, (n,), n >= 2, or (seeds, n).
        retrained: metric of these items on the model that did not see the data, same shape.
        seed: seed of the resampling.

    Raises:
        ValueError: the shapes differ, there are fewer than two items, or a metric is not finite.
    """
    t, r = checked(target, retrained)
    low, high = interval(resampled_means(t - r, seed=seed)[0])
    return "rises" if low > 0 else "falls" if high < 0 else "unclear"


@claim("T16", kind="exact", source="OpenUnlearning, arXiv 2506.12618 §4.2, with a direction test")
def quantization_robustness(
    unlearned: NDArray[Any], quantized: NDArray[Any], direction: Direction, *, seed: int
) -> Ratio:
    """Q = min(before / after, 1) for a metric that rises with memory, min(after / before, 1) for one that falls.

    Low: quantization brings knowledge back. 1: it does not, or it breaks the model, which Q cannot tell apart. With the
    direction mistaken, a loss would score its own destruction. Undefined while the direction is "unclear", and where
    both means are 0. It depends on the origin of the metric, as rho does not: 0.01 to 0.02 is Q = 1/2.

    Args:
        unlearned: the metric of each item before, on w', >= 0, (n,), n >= 2, or (seeds, n).
        quantized: metric of these items after, on Q(w'), same shape.
        direction: result of `memory_direction`.
        seed: seed of the resampling.

    Raises:
        ValueError: the shapes differ, there are fewer than two items, or a metric is negative or not finite.
    """
    before, after = checked(unlearned, quantized)
    if (before < 0).any() or (after < 0).any():
        raise ValueError("metrics of a robustness must be non-negative, got a negative one")
    forgotten, known = (before, after) if direction == "rises" else (after, before)
    value = float(_clipped(np.array(forgotten.mean()), np.array(known.mean())))
    value = math.nan if direction == "unclear" else value
    if math.isnan(value):
        return Ratio(value, -math.inf, math.inf, math.inf, False)
    samples = _clipped(*resampled_means(forgotten, known, seed=seed))
    samples = samples[~np.isnan(samples)]
    return Ratio(value, *interval(samples), float(samples.std(ddof=1)), True)


def symmetric_robustness(unlearned: float, quantized: float) -> float:
    """Return 1 - |after - before| / (|after| + |before|): UDS's variant, which also falls where a model is destroyed.

    1 where both are 0; it asks for no direction and gives none.
    """
    size = abs(quantized) + abs(unlearned)
    return 1 - abs(quantized - unlearned) / size if size else 1.0


def _clipped(less: NDArray[Any], more: NDArray[Any]) -> NDArray[Any]:
    """Return min(less / more, 1) of non-negative numbers; nan at 0 / 0."""
    both = (less > 0) | (more > 0)
    ratio = np.divide(less, more, out=np.ones(less.shape), where=more > less)
    return np.where(both, ratio, np.nan)
