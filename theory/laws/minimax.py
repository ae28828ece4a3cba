"""T22: what no quantizer can do better: flips, noise of an unbiased one, and what codes tell of an update.

Takes an update and the number or the places of levels; gives bounds that hold for every quantizer of that kind.

>>> round(float(flip_probability_upper_bound(1e-3, levels=15, length=0.14)), 6)
0.1
>>> unbiased_variance_lower_bound(0.25, [0.0, 1.0, 3.0]).tolist()
0.1875
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from unforgotten.theory.claims import claim

U64 = 2.0**-53
MOST_SPREAD = 2 / 3
"""The flip probability of largest entropy: no change, up and down are then equally likely."""


@claim("T22", kind="law", source="derived here; union of K - 1 intervals of length |delta|")
def flip_probability_upper_bound(delta: ArrayLike, *, levels: int, length: float) -> NDArray[Any]:
    """P[code(w + delta) != code(w)] <= (K - 1) |delta| / L, for every monotone quantizer of K levels and w uniform on L.

    A code changes only where one of the K - 1 thresholds lies between w and w + delta, and each does so for a set of
    places of length |delta| at most. Equality where the thresholds and the ends are |delta| apart: the uniform grid
    attains it for |delta| <= Delta, and no codebook of K levels shows more of an update in its codes. The quantizer
    depends on the weight alone, by a fixed rule; a dithered one is such a rule for each value of its dither.

    Args:
        delta: the update, any shape.
        levels: K >= 1.
        length: L > 0, length of the interval that w is uniform on, in the units of the update.

    Returns:
        Probabilities, at most 1, rounded up.

    Raises:
        ValueError: an argument is out of its range.
    """
    if levels < 1:
        raise ValueError(f"levels must be at least 1, got levels={levels}")
    if not (math.isfinite(length) and length > 0):
        raise ValueError(f"length must be positive and finite, got length={length!r}")
    size = np.abs(np.asarray(delta, np.float64))
    if not np.isfinite(size).all():
        raise ValueError("delta must be finite, got nan or inf")
    share = size / length * (levels - 1) * (1 + 4 * U64)
    return np.where(size * (levels > 1) == 0, 0.0, np.minimum(np.nextafter(share, np.inf), 1.0))


@claim("T22", kind="exact", source="derived here; (X - l)(X - u) >= 0 off the gap between two neighbouring levels")
def unbiased_variance_lower_bound(mean: ArrayLike, levels: Sequence[float] | NDArray[Any]) -> NDArray[Any]:
    """Var X >= (x - l)(u - x) for every random X on the levels with E X = x, l <= x <= u its neighbours; attained.

    On a grid of step Delta it is Delta^2 phi (1 - phi), phi = frac(x / Delta). For X = Q(w): a quantizer without bias
    has at least this noise, and stochastic rounding (T19) no more. For X = D, E D = delta, on the differences of a
    uniform grid: an update passes without bias at no less than the noise of T7, which a shared dither attains.

    Args:
        mean: x, any shape, between the lowest and the highest level.
        levels: values that X can have, ascending, (K,), K >= 2.

    Returns:
        The least variance, in the shape of `mean`, in float64.

    Raises:
        ValueError: the levels do not ascend, or a mean lies outside of them: no X there is unbiased.
    """
    x, grid = np.asarray(mean, np.float64), np.asarray(levels, np.float64)
    if not (grid.ndim == 1 and grid.size >= 2 and np.isfinite(grid).all() and (np.diff(grid) > 0).all()):
        raise ValueError(f"levels must be two or more ascending numbers, got levels={levels!r}")
    if not ((grid[0] <= x) & (x <= grid[-1])).all():
        raise ValueError(f"mean must be in [{grid[0]:g}, {grid[-1]:g}], the reach of the levels, got mean={mean!r}")
    above = np.clip(np.searchsorted(grid, x, side="right"), 1, grid.size - 1)
    return np.asarray((x - grid[above - 1]) * (grid[above] - x))


@claim("T22", kind="exact", source="Cover & Thomas 2006, ch. 2; derived here")
def code_information_upper_bound(flip_probability: ArrayLike) -> float:
    """I(delta; codes of w' | w) <= sum_i h(p_i) + p_i log 2 nats, where no code moves by more than one.

    h(p) = -p log p - (1 - p) log(1 - p). Given w the codes of w' are the changes of the codes, and a change is -1, 0 or
    1; its entropy is at most that of p_i split evenly. For any law of the updates, dependent ones too, and any
    quantizer that depends on w' and, where it draws, on nothing that tells of delta. With the codes of w, or nothing,
    in place of w it bounds what a change of codes tells.

    Args:
        flip_probability: P[code of weight i changes], over weights and updates, or an upper bound of it; in [0, 1].

    Returns:
        The bound in nats, rounded up; above p = 2/3 a weight tells at most log 3.

    Raises:
        ValueError: a probability is outside [0, 1].
    """
    p = np.asarray(flip_probability, np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("flip_probability must be in [0, 1], got one outside")
    p = np.minimum(p, MOST_SPREAD)
    # log1p keeps the second term where 1 - p rounds to 1
    told = scipy.special.entr(p) - (1 - p) * np.log1p(-p) + p * math.log(2)
    return float(np.nextafter(math.fsum(told.ravel()) * (1 + 16 * U64), np.inf))
