"""T11 and C2: gain, flips and cosine of a format from the weights' law, the learning rate, the steps and the dtype.

Takes a format, the densities of weights and absmax, the law of the steps and the training run; gives a `Prediction`.

>>> from unforgotten.theory.formats.names import format_named
>>> from unforgotten.theory.geometry.motion import step_law
>>> from unforgotten.theory.laws.absmax import absmax_law
>>> from unforgotten.theory.laws.densities import Gaussian
>>> density = Gaussian(0.02)
>>> law, steps = absmax_law(density, 64), step_law("sign")
>>> found = predict(format_named("int4-g64"), density, law, steps, lr=1e-5, steps=500, dtype="bfloat16")
>>> round(found.moved, 2), round(found.expected.gain, 2)
(0.15, 0.75)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.claims import claim
from unforgotten.theory.formats.names import Format
from unforgotten.theory.geometry.motion import StepLaw, check_training, expected_displacement, free_radius, movable_edge
from unforgotten.theory.geometry.motion_fit import Moves
from unforgotten.theory.laws.absmax import AbsmaxLaw
from unforgotten.theory.laws.block_law import Expected, block_law, combine
from unforgotten.theory.laws.boundary import moments
from unforgotten.theory.laws.densities import Density

PIECES_PER_BINADE = 6
SPREAD_OF_FREE_WEIGHTS = 64.0  # standard deviations that hold all weights that matter


@dataclass(frozen=True)
class Prediction:
    """What a format leaves of an update, in expectation.

    Attributes:
        edge: magnitude from which on nothing moves, inf where all weights move.
        moved: share of weights that move by at least half a spacing.
        ratio: rms displacement over lr * steps, where the storage does not round.
        expected: sums per weight; `gain`, `cosine` and `flips` are there.
    """

    edge: float
    moved: float
    ratio: float
    expected: Expected


@claim("T11", kind="law", source="T4, T5, T6 and the law of absmax together; conjecture C2")
def predict(
    fmt: Format, density: Density, absmax: AbsmaxLaw, steps_law: StepLaw, *, lr: float, steps: int, dtype: str
) -> Prediction:
    """G = E[D delta] / E[delta^2] over w ~ F, absmax ~ H and drift ~ the step law, delta = expected_displacement(w).

    Weights move where the storage lets them; what they cross there decides. Independent of one another; those that
    set the absmax are counted where every weight moves (adaptive grid), and stand where they lie beyond the edge.

    Args:
        fmt: an absmax format.
        density: F, in the units of lr.
        absmax: law of the block's absmax, from F or from a tensor.
        steps_law: law of the optimizer's steps.
        lr: learning rate > 0.
        steps: number of steps T >= 0.
        dtype: dtype of the stored weights.

    Raises:
        ValueError: an argument is out of its domain.
    """
    check_training(lr, steps, dtype)
    edge = movable_edge(steps_law, lr=lr, steps=steps, dtype=dtype)
    if free_radius(lr, dtype) > SPREAD_OF_FREE_WEIGHTS * density.scale:
        return _all_move(fmt, density, absmax, steps_law, lr * steps)
    low, high = pieces(free_radius(lr, dtype), edge, density)
    middle = (low + high) / 2
    parts, moved = [], 0.0
    for node, weight in enumerate(steps_law.weight):
        delta = expected_displacement(middle, steps_law, node, lr=lr, steps=steps, dtype=dtype)
        share = density.cdf(high) - density.cdf(low)
        moved += float(weight * share[delta != 0].sum())
        parts.append((float(weight), _piecewise(fmt, density, absmax, (low, high), delta, np.ones(len(low)))))
    return Prediction(edge, moved, steps_law.ratio, combine(parts))


def pieces(radius: float, edge: float, density: Density) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return (lower, upper) ends of intervals of w, both signs, that cover |w| < edge: PIECES_PER_BINADE a binade.

    Below `radius`, and below 2^-10 of the standard deviation, the motion is one and the same: as many pieces in all.
    """
    inner = max(radius, 2.0 ** math.floor(math.log2(density.scale) - 10))
    outer = min(edge, 2.0 ** math.ceil(math.log2(density.scale) + 6))
    if outer <= inner:
        ends = np.linspace(0.0, outer, PIECES_PER_BINADE + 1)
    else:
        binades = round(math.log2(outer / inner))
        fine = (1 + np.arange(1, PIECES_PER_BINADE + 1) / PIECES_PER_BINADE) * inner
        ends = np.concatenate(
            [np.linspace(0.0, inner, PIECES_PER_BINADE + 1), *(fine * 2.0**i for i in range(binades))]
        )
    ends = np.concatenate([-ends[:0:-1], ends])
    return ends[:-1], ends[1:]


def _all_move(fmt: Format, density: Density, absmax: AbsmaxLaw, law: StepLaw, length: float) -> Prediction:
    """Predict displacements |drift| lr T in both directions: the block law of each size, on the adaptive grid."""
    sizes, index = np.unique(np.abs(law.drift), return_inverse=True)
    shares = np.bincount(index, law.weight)
    if length == 0:
        return Prediction(math.inf, 0.0, law.ratio, Expected(0.0, 0.0, 0.0, 0.0, 0.0))
    parts = [
        (float(p), block_law(fmt, density, absmax, float(s) * length, "adaptive"))
        for s, p in zip(sizes, shares, strict=True)
    ]
    return Prediction(math.inf, 1.0, law.ratio, combine(parts))


def predict_moves(fmt: Format, density: Density, absmax: AbsmaxLaw, moves: Moves) -> Expected:
    """Return E[flips, D delta, D^2] for weights of a density that move as a pair was seen to move, on a fixed grid.

    Only the place of the weights and the absmax of their blocks are left to the law.
    """
    return _piecewise(fmt, density, absmax, (moves.low, moves.high), moves.delta, moves.share)


def _piecewise(
    fmt: Format,
    density: Density,
    absmax: AbsmaxLaw,
    interval: tuple[NDArray[Any], NDArray[Any]],
    delta: NDArray[Any],
    share: NDArray[Any],
) -> Expected:
    """Add up pieces of which a share moves by `delta`, over the nodes of the law of absmax; the grid is fixed."""
    moving = delta != 0
    low, high, delta, share = interval[0][moving], interval[1][moving], delta[moving], share[moving]
    count = len(absmax.values)
    a, weight = np.repeat(absmax.values, len(delta)), np.outer(absmax.weights, share).ravel()
    d = np.tile(delta, count)
    m = moments(fmt, density, a, a, d, (np.tile(low, count), np.tile(high, count)))
    return Expected(
        float(weight @ m.flips),
        float(weight @ m.levels),
        float(weight @ (m.surviving * d)),
        float(weight @ (m.mass * d**2)),
        float(weight @ m.surviving_sq),
    )
