"""T6 for a density: which thresholds an update carries a weight across, with the exact edge terms."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unforgotten.theory.claims import claim
from unforgotten.theory.formats.names import Format
from unforgotten.theory.laws.absmax import magnitude_cdf
from unforgotten.theory.laws.densities import Density


class Shape(NamedTuple):
    """A format's grid as multiples of the block's absmax: `thresholds` (K - 1,), `levels` (K,), float64."""

    thresholds: NDArray[Any]
    levels: NDArray[Any]


def shape_of(fmt: Format) -> Shape:
    """Return the grid of a block whose absmax is 1.

    Raises:
        ValueError: the scale of the format is not set by the absmax alone.
    """
    rule = getattr(fmt, "scale_rule", "quotient")
    if fmt.statistic != "absmax" or rule != "quotient":
        raise ValueError(
            f"format must have a scale that is proportional to the block's absmax, got format={fmt.name!r} "
            f"(statistic {fmt.statistic}, scale {rule})"
        )
    levels = np.asarray(fmt.levels, np.float64) / fmt.divisor
    return Shape(fmt.thresholds.astype(np.float64) / fmt.divisor, levels)


class Moments(NamedTuple):
    """Expectations over weights, each (n,): share of the weights, code flips, levels moved, D, D^2, and D on its own.

    `mass` is P(w in the interval); the others are integrals over the interval, not divided by it.
    """

    mass: NDArray[Any]
    flips: NDArray[Any]
    levels: NDArray[Any]
    surviving: NDArray[Any]
    surviving_sq: NDArray[Any]


def moments(
    fmt: Format,
    density: Density,
    absmax: NDArray[Any],
    absmax_new: NDArray[Any],
    delta: NDArray[Any],
    interval: tuple[ArrayLike, ArrayLike] = (-np.inf, np.inf),
) -> Moments:
    """Return E[g(k, k'); w in interval], exact: the line is cut where the code of w or of w + delta changes.

    Given its block's absmax a, a weight that does not set it has the law F conditioned on [-a, a].

    Args:
        fmt: an absmax format.
        density: F.
        absmax: a before the update, > 0, (n,).
        absmax_new: a after the update; equal to `absmax` on a fixed grid, (n,).
        delta: the update, (n,).
        interval: ends (lower, upper) of w, scalars or (n,).
    """
    shape = shape_of(fmt)
    a, a_new, d = (np.asarray(x, np.float64)[:, None] for x in (absmax, absmax_new, delta))
    low, high = (np.broadcast_to(x, len(a))[:, None] for x in interval)
    low, high = np.clip(low, -a, a), np.clip(high, -a, a)
    near = _thresholds_near(shape.thresholds, (low / a, (low + d) / a_new), (high / a, (high + d) / a_new))
    cuts = np.concatenate([a * near, a_new * near - d], axis=1)
    cuts = np.concatenate([low, np.sort(np.clip(cuts, low, high), axis=1), high], axis=1)
    mass = np.diff(density.cdf(cuts), axis=1) / magnitude_cdf(a, density)
    middle = (cuts[:, 1:] + cuts[:, :-1]) / 2
    before = np.searchsorted(shape.thresholds, middle / a)
    after = np.searchsorted(shape.thresholds, (middle + d) / a_new)
    surviving = a_new * shape.levels[after] - a * shape.levels[before]
    parts = (np.ones_like(mass), before != after, np.abs(after - before), surviving, surviving**2)
    return Moments(*((mass * part).sum(axis=1) for part in parts))


def _thresholds_near(
    thresholds: NDArray[Any], lower: tuple[NDArray[Any], ...], upper: tuple[NDArray[Any], ...]
) -> NDArray[Any]:
    """Return as many consecutive thresholds for every row as hold all that lie between its least and its largest end, (n, m).

    Args:
        thresholds: ascending, (K - 1,).
        lower: lower ends, each (n, 1), in the units of the thresholds.
        upper: upper ends, likewise.
    """
    first = np.searchsorted(thresholds, np.minimum(*lower))
    count = np.searchsorted(thresholds, np.maximum(*upper)) - first
    index = first + np.arange(max(int(count.max(initial=0)), 1))
    return thresholds[np.minimum(index, len(thresholds) - 1)]


@claim("T6", kind="exact", source="telescoping: k(w') - k(w) counts the thresholds between w and w'")
def levels_moved(fmt: Format, density: Density, absmax: float, delta: float) -> float:
    """E|k(w + delta) - k(w)| = sum_k |F_a(t_k) - F_a(t_k - delta)| on the fixed grid of a block with absmax a.

    F_a is F conditioned on [-a, a], the law of a weight that does not set the absmax.

    Args:
        fmt: an absmax format.
        density: F.
        absmax: a > 0.
        delta: the update, any sign, in the units of the weights.
    """
    t = absmax * shape_of(fmt).thresholds
    inside = density.cdf(np.clip(t, -absmax, absmax))
    moved = density.cdf(np.clip(t - delta, -absmax, absmax))
    return float(np.abs(inside - moved).sum() / magnitude_cdf(absmax, density))


@claim("T6", kind="first-order", source="Taylor expansion of levels_moved in delta")
def boundary_density(fmt: Format, density: Density, absmax: float) -> float:
    """E|k(w + delta) - k(w)| = |delta| sum_k f_a(t_k) + R, |R| <= delta^2 / 2 * sum_k max |f_a'| near t_k."""
    t = absmax * shape_of(fmt).thresholds
    return float(density.pdf(t).sum() / magnitude_cdf(absmax, density))


@claim("T6", kind="exact", source="the entry that sets absmax lies on the end of the reach")
def pinned_levels(fmt: Format, absmax: float, delta: float, sign: int) -> int:
    """|k(w + delta) - k(w)| of the entry w = +-absmax, on a fixed grid: 0 outward, and inward up to absmax - |last t_k|.

    So it can leave its code on a fixed grid, but only by an inward update of half a step; on an adaptive grid that
    follows it, never.
    """
    shape = shape_of(fmt)
    codes = np.searchsorted(shape.thresholds, np.array([sign, sign + delta / absmax]))
    return int(abs(codes[1] - codes[0]))
