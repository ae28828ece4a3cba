"""T11: where assumption U fails, and with it the unbiased passage of an update."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unforgotten.theory.claims import claim
from unforgotten.theory.formats.names import Format
from unforgotten.theory.laws.boundary import shape_of
from unforgotten.theory.laws.gating import checked_step


@claim("T11", kind="exact", source="rounding a grid point plus delta")
def on_grid_survivor(
    delta: ArrayLike, step: float, room: tuple[ArrayLike, ArrayLike] = (np.inf, np.inf)
) -> NDArray[Any]:
    """(a) w on a uniform grid that stays as it is: D = step * clip(round(delta / step), -below, above), `room` to its ends.

    So D = 0 iff |delta| < step / 2 (a tie may round either way), or the code is an end and delta points outward. For
    weights that were quantized before, on the same grid: a QAT model, a dequantized one, one format twice. Where w'
    sets a new scale, and on a codebook such as NF4, it does not hold.

    Args:
        delta: the update, any shape.
        step: Delta > 0.
        room: (below, above), the codes between the weight's and the lowest, and the highest; >= 0, as `delta`'s shape.
            Infinite where nothing is clipped.

    Raises:
        ValueError: the step is not positive and finite, or a room is negative or nan.
    """  # noqa: D401
    below, above = (np.asarray(x, np.float64) for x in room)
    if not ((below >= 0).all() and (above >= 0).all()):
        raise ValueError(f"room must not be negative, got room={room!r}")
    return step * np.clip(np.rint(np.asarray(delta, np.float64) / checked_step(step)), -below, above)


@claim("T11", kind="law", source="Gaussian tail sum for rint(delta / step)")
def on_grid_gain(spread: float, step: float) -> float:
    """(a) G = sum_{k>=1} 2 c phi((k - 1/2) c), c = step / spread, for delta ~ N(0, spread^2): E[D delta] / E[delta^2].

    A fixed uniform grid on which no code is clipped. Exponentially small for c >> 1, and 1 for c << 1: dithering by a
    wide update restores U. phi is the normal density.

    Args:
        spread: standard deviation of delta, > 0.
        step: Delta > 0.

    Raises:
        ValueError: an argument is not positive and finite.
    """  # noqa: D401
    if not (math.isfinite(spread) and spread > 0):
        raise ValueError(f"spread must be positive and finite, got spread={spread!r}")
    c = checked_step(step) / spread
    places = (np.arange(math.ceil(40 / c) + 1) + 0.5) * c  # phi(39) is 0 in float64
    return float(2 * c * np.exp(-(places**2) / 2).sum() / math.sqrt(2 * math.pi))


@claim("T11", kind="exact", source="T1: no threshold between w and w + delta")
def swallowing_absmax(fmt: Format, edge: float) -> float:
    """(b) From absmax >= edge / t_0 on, weights that stay in |w| < edge cross nothing: D = 0, gain 0, on a fixed grid.

    t_0 is the least |threshold| between two values that differ, over the absmax: 1/14 for INT4, 0.0398 for NF4, 0.0026
    for FP4 (whose two zeros share a value, so the code can flip and D is still 0). `edge` bounds the weight before
    and after the update: T4's dead zone, where a weight that reaches it stops.

    Args:
        fmt: an absmax format.
        edge: magnitude that the weights stay below, > 0, in the units of the weights.

    Returns:
        The smallest such absmax.

    Raises:
        ValueError: the edge is not positive and finite.
    """
    if not (math.isfinite(edge) and edge > 0):
        raise ValueError(f"edge must be positive and finite, got edge={edge!r}")
    shape = shape_of(fmt)
    return edge / float(np.abs(shape.thresholds[np.diff(shape.levels) > 0]).min())


@claim("T11", kind="law", source="second moment of the distance to the farther end of a cell")
def hidden_energy_upper_bound(step: float) -> float:
    """(c) E[delta^2] <= 7/12 step^2 for an update that flips no code, under U for w: projected training hides this much.

    A weight at place x of its cell can move by max(x, 1 - x) of a step, and the mean square of that is 7/12. A fixed
    uniform grid, inner cells: outward from an end cell an update of any size flips nothing. The wash test (T12) sees
    it: no flips where sum p_i were expected.

    Args:
        step: Delta > 0.
    """
    return 7 * checked_step(step) ** 2 / 12


@claim("T11", kind="law", source="T12 with no flip observed, p_i = p")
def hidden_wash_z(weights: int, flip_probability: float) -> float:
    """(c) z = -sqrt(n p / (1 - p)): what the wash test gives for n weights that hide an update of flip probability p.

    Args:
        weights: number of weights n >= 1.
        flip_probability: p in [0, 1).

    Raises:
        ValueError: an argument is out of its range.
    """
    if weights < 1:
        raise ValueError(f"weights must be at least 1, got weights={weights}")
    if not 0 <= flip_probability < 1:
        raise ValueError(f"flip_probability must be in [0, 1), got {flip_probability!r}")
    return -math.sqrt(weights * flip_probability / (1 - flip_probability))
