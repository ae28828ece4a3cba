"""T6-T8 for whole blocks: flips, gain and cosine of an update of one size, on fixed and on adaptive grids.

Takes a format, a density, the law of the absmax of blocks and the size of an update; gives `Expected`.

>>> from unforgotten.theory.formats.names import format_named
>>> from unforgotten.theory.laws.absmax import absmax_law
>>> from unforgotten.theory.laws.densities import Gaussian
>>> law = absmax_law(Gaussian(1.0), 64)
>>> found = block_law(format_named("int4-g64"), Gaussian(1.0), law, delta=0.01, mode="fixed")
>>> round(found.gain, 2), round(found.cosine, 2)
(0.98, 0.16)
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.claims import claim
from unforgotten.theory.formats.names import Format
from unforgotten.theory.laws.absmax import AbsmaxLaw, magnitude_cdf
from unforgotten.theory.laws.boundary import Moments, moments, shape_of
from unforgotten.theory.laws.densities import Density
from unforgotten.theory.laws.update import GRID_MODES, GridMode

OVERTAKING_NODES = 8  # places of the entry that overtakes, of equal probability
FINE_EDGES = 512  # at which its law is computed; in blocks of 10,000 it spans a 50th of the range
TINY = 1e-12  # a probability without a mean worth a quotient


class Expected(NamedTuple):
    """Expectations per weight. `dot` is E[D delta]; sums of several laws, weighted, are a law again."""

    flips: float
    levels: float
    dot: float
    delta_sq: float
    surviving_sq: float

    @property
    def gain(self) -> float:
        """E[D delta] / E[delta^2]; nan without an update."""
        return self.dot / self.delta_sq if self.delta_sq > 0 else math.nan

    @property
    def cosine(self) -> float:
        """E[D delta] / sqrt(E[D^2] E[delta^2]); nan where nothing moves or survives."""
        square = self.delta_sq * self.surviving_sq
        return self.dot / math.sqrt(square) if square > 0 else math.nan


def combine(parts: list[tuple[float, Expected]]) -> Expected:
    """Return the weighted sum of laws."""
    return Expected(*(sum(share * x[i] for share, x in parts) for i in range(5)))


class _Nodes(NamedTuple):
    """Blocks before and after: absmax, its successor, their probability, and the signed entry that set it."""

    before: NDArray[Any]
    after: NDArray[Any]
    weight: NDArray[Any]
    pinned: NDArray[Any]
    pinned_delta: NDArray[Any]


@claim("T6", kind="law", source="T6-T8 integrated over the law of absmax (David & Nagaraja 2003, §2.1)")
def block_law(fmt: Format, density: Density, law: AbsmaxLaw, delta: float, mode: GridMode) -> Expected:
    """E[flips, levels, D delta, D^2] = 1/B pinned + (1 - 1/B) others, integrated over (2F(a) - 1)^B; delta = +-|delta|.

    Independent weights, signs of the update independent of them. Fixed grid: exact but for the quadrature of `law`,
    whose jumps are those of the pinned entry: it is one weight in B, so spacing / (5 B) of its own size (INT8 and NF4
    at 0.3 standard deviations show it among 10^7 weights at spacing 0.5, not at 1/32). Adaptive grid: absmax follows
    the entry that set it, or one that overtakes it (only while it shrinks: P is below half); the overtaker's own D
    is off by at most 2 |delta|, and it is one weight in B.

    Args:
        fmt: an absmax format.
        density: F; symmetric in its tails, or the sign of the pinned entry weighs by the density there.
        law: law of the absmax of blocks of B.
        delta: size of the update, the same for every weight, > 0.
        mode: "fixed" or "adaptive".

    Raises:
        ValueError: delta is not positive and finite, or the mode is unknown.
    """
    if not (math.isfinite(delta) and delta > 0):
        raise ValueError(f"delta must be positive and finite, got delta={delta!r}")
    if mode not in GRID_MODES:
        raise ValueError(f"mode must be one of {', '.join(GRID_MODES)}, got mode={mode!r}")
    nodes = _block_nodes(density, law, delta, mode)
    pinned = _pinned(fmt, nodes)
    others = [
        _average(moments(fmt, density, nodes.before, nodes.after, np.full(len(nodes.before), d)), nodes.weight, d)
        for d in (delta, -delta)
    ]
    share = 1 / law.size
    return combine([(share, pinned), *(((1 - share) / 2, other) for other in others)])


def adaptive_error(density: Density, law: AbsmaxLaw, delta: float) -> float:
    """Return the largest error of an adaptive `block_law`'s gain, 2 P(another entry overtakes) / B, from its own D.

    No bound of the error of `flips` and `levels`: where the overtaker lands scales all weights of the block, and the
    law takes OVERTAKING_NODES places for it, of equal probability. `overtaking_probability` is the share of blocks for
    which that matters.
    """
    return overtaking_probability(density, law, delta) / law.size


def overtaking_probability(density: Density, law: AbsmaxLaw, delta: float) -> float:
    """Return P(another entry lies within 2 |delta| of the absmax), without which none can overtake it.

    Args:
        density: F.
        law: law of the absmax of blocks.
        delta: size of the update, > 0.
    """
    a = law.values
    inside = magnitude_cdf(np.maximum(a - 2 * delta, 0.0), density) / magnitude_cdf(a, density)
    return float((1 - inside ** (law.size - 1)) @ law.weights)


def _average(m: Moments, weight: NDArray[Any], delta: float) -> Expected:
    return Expected(
        flips=float(weight @ m.flips),
        levels=float(weight @ m.levels),
        dot=float(weight @ m.surviving) * delta,
        delta_sq=float(weight @ m.mass) * delta**2,
        surviving_sq=float(weight @ m.surviving_sq),
    )


def _pinned(fmt: Format, nodes: _Nodes) -> Expected:
    shape = shape_of(fmt)
    before = np.searchsorted(shape.thresholds, nodes.pinned / nodes.before)
    after = np.searchsorted(shape.thresholds, (nodes.pinned + nodes.pinned_delta) / nodes.after)
    surviving = nodes.after * shape.levels[after] - nodes.before * shape.levels[before]
    w, d = nodes.weight, nodes.pinned_delta
    return Expected(
        flips=float(w @ (before != after)),
        levels=float(w @ np.abs(after - before)),
        dot=float(w @ (surviving * d)),
        delta_sq=float(w @ d**2),
        surviving_sq=float(w @ surviving**2),
    )


def _block_nodes(density: Density, law: AbsmaxLaw, delta: float, mode: GridMode) -> _Nodes:
    up, down = density.pdf(law.values), density.pdf(-law.values)
    known = up + down > 0
    positive = np.where(known, up, 1.0) / np.where(known, up + down, 2.0)
    parts = []
    for sign, share in ((1, positive), (-1, 1 - positive)):
        for outward in (True, False):
            for after, p in _successors(density, law, delta, outward, mode):
                parts.append(
                    (
                        law.values,
                        after,
                        law.weights * share * p / 2,
                        sign * law.values,
                        np.full(len(after), sign * delta if outward else -sign * delta),
                    )
                )
    return _Nodes(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _successors(
    density: Density, law: AbsmaxLaw, delta: float, outward: bool, mode: GridMode
) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Return (absmax after the update, its probability) given each absmax before."""
    a, one = law.values, np.ones(len(law.values))
    if mode == "fixed":
        return [(a, one)]
    if outward:
        return [(a + delta, one)]  # no other entry can get there
    edges = [np.abs(a - delta) + f * 2 * np.minimum(a, delta) for f in np.linspace(0, 1, FINE_EDGES + 1)]
    below = np.stack([_largest_other_cdf(m, a, delta, density) ** (law.size - 1) for m in edges])
    means, shares = _equal_shares(np.stack(edges), np.maximum.accumulate(below, axis=0))
    return [(edges[0], below[0]), *zip(means, shares, strict=True)]


def _equal_shares(places: NDArray[Any], below: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return OVERTAKING_NODES means and probabilities of equal shares of each law, (nodes, n); places where it has none.

    Args:
        places: magnitudes, ascending, (m, n).
        below: probability up to each, (m, n); what lies below the first is left out.
    """
    first = np.diff(below, axis=0) * (places[1:] + places[:-1]) / 2
    moment = np.concatenate([np.zeros((1, below.shape[1])), np.cumsum(first, axis=0)])
    shares = np.linspace(0, 1, OVERTAKING_NODES + 1)[:, None]
    cuts = below[0] + shares * (below[-1] - below[0])
    columns = range(below.shape[1])
    reached = np.stack([np.interp(cuts[:, i], below[:, i], moment[:, i]) for i in columns], axis=1)
    mass = np.diff(cuts, axis=0)
    unused = np.broadcast_to(places[0], mass.shape).copy()
    means = np.divide(np.diff(reached, axis=0), mass, out=unused, where=mass > TINY)
    return np.clip(means, places[0], places[-1]), mass


def _largest_other_cdf(m: NDArray[Any], a: NDArray[Any], delta: float, density: Density) -> NDArray[Any]:
    """Return P(|w + delta'| <= m given |w| <= a), delta' = +-delta."""
    shares = [density.cdf(np.clip(m - d, -a, a)) - density.cdf(np.clip(-m - d, -a, a)) for d in (delta, -delta)]
    return np.clip(sum(shares) / (2 * magnitude_cdf(a, density)), 0.0, 1.0)
