"""What a described quantizer must do with a block, in float64: its grid, the rounding it is forgiven, its ties.

Weights are float32, so a statistic is exact in float64 and a step is off by 2^-53 of itself: nothing, beside the
float32 roundings that `slack` counts; and where the step is a power of two, every number here is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.verification.contracts.described import Quantizer
from unforgotten.verification.oracles import ETA32, U32

Array = NDArray[Any]


@dataclass(frozen=True)
class Ideal:
    """The exact grid of one block.

    Attributes:
        step: weight units of one code unit; negative where a signed statistic is.
        low: the weight of code unit 0.
        units: code units of the levels, float64 (K,), ascending, the zero point taken off.
        labels: number that is stored for each level, (K,).
        readable: whether the statistic is not under the floor.
    """

    step: float
    low: float
    units: Array
    labels: Array
    readable: bool

    @property
    def values(self) -> Array:
        """The weight of each level (K,)."""
        return self.units * self.step + self.low

    @property
    def gap(self) -> float:
        """The narrowest distance of two different levels, in weights."""
        gaps = np.diff(self.units)
        return float(gaps[gaps > 0].min()) * abs(self.step)

    def in_units(self, w: Array) -> Array:
        """Return the code units of weights; 0 where the step says nothing."""
        return (w - self.low) / self.step if self.step else np.zeros_like(w)


def statistic(q: Quantizer, w: Array) -> float:
    """Return the number that sets the step of a block."""
    if q.statistic == "signed-absmax":
        return float(w[np.abs(w).argmax()])
    if q.statistic == "absmax":
        return float(np.abs(w).max())
    low, high = ends(q, w)
    return high - low


def ends(q: Quantizer, w: Array) -> tuple[float, float]:
    """Return the ends of what the grid of a block must hold."""
    low, high = float(w.min()), float(w.max())
    if q.statistic == "range":
        return min(low, 0.0), max(high, 0.0)
    if q.statistic == "min-max":
        return low, high
    size = max(-low, high)
    return -size, size


def slack(q: Quantizer, w: Array) -> float:
    """Return an upper bound of the rounding in the round trip of any weight of a block, in weights.

    In code units a ratio has at most 3 roundings (scale, quotient or reciprocal, product), a threshold 1; the value
    at most 3 more (level minus zero, product, unit), each U32 of at most the range 2 L; both use a stored parameter,
    or two, off by `scale_roundoff`. A subnormal scale is off by ETA32 / 2, times a code, twice; the value by its own.
    """
    largest = float(np.abs(w).max())
    relative = (7 * U32 + 2 * q.scale_roundoff) * 2 * largest
    underflow = (max(abs(q.step_divisor), 1.0) + 2) * ETA32
    unreadable = 2 * largest if abs(statistic(q, w)) < q.floor else 0.0
    return relative + underflow + unreadable


def ideals(q: Quantizer, w: Array) -> list[Ideal]:
    """Return the exact grids of a block: one, or a few where the zero point is within `slack` of a tie.

    Args:
        q: claims `levels`.
        w: the weights of one block, float64 (n,).
    """
    found = statistic(q, w)
    readable = abs(found) >= q.floor
    step = (found if readable else q.floor) / q.step_divisor
    levels = np.asarray(q.levels, np.float64)
    labels = np.asarray(q.labels if q.labels is not None else range(len(levels)))
    if q.statistic == "min-max":
        return [Ideal(step, float(w.min()), levels - levels[0], labels, readable)]
    if q.statistic != "range":
        return [Ideal(step, 0.0, levels, labels, readable)]
    zeros = _zeros(-ends(q, w)[0], step, slack(q, w), len(levels) - 1)
    return [Ideal(step, 0.0, levels - levels[0] - zero, labels, readable) for zero in zeros]


def _zeros(distance: float, step: float, tolerance: float, top: int) -> range:
    """Return the integers that `distance / step` may be rounded to, at most `top`."""
    if not step:
        return range(1)
    first, last = (np.clip(np.rint((distance + t) / step), 0, top) for t in (-tolerance, tolerance))
    return range(int(first), int(last) + 1)


# Which of two neighbouring levels a weight halfway between them goes to: whether it is the upper one.
Upper = Callable[[Ideal, int], bool]
TIES: Mapping[str, tuple[str, Upper]] = {
    "half-even": ("to the even level", lambda g, k: g.units[k + 1] % 2 == 0),
    "half-even-label": ("to the level whose code is even", lambda g, k: g.labels[k + 1] % 2 == 0),
    "half-lower": ("to the lower level", lambda g, k: False),
    "half-up": ("to the upper level", lambda g, k: True),
    "half-away": ("away from zero", lambda g, k: g.units[k] + g.units[k + 1] > 0),
}


def tied(ideal: Ideal, w: Array) -> Array:
    """Return the index of the lower of the two levels that a weight lies exactly between; -1 where it does not."""
    if np.frexp(ideal.step)[0] not in (0.5, -0.5):
        return np.full(w.shape, -1)  # not exact
    v = ideal.in_units(w)
    below = np.searchsorted(ideal.units, v, side="right") - 1
    inside = (below >= 0) & (below < len(ideal.units) - 1)
    k = np.where(inside, below, 0)
    return np.where(inside & (2 * v == ideal.units[k] + ideal.units[k + 1]), k, -1)
