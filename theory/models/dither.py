"""T19: what dither guarantees: rounding without bias whatever the update, and a loss that seldom falls far.

Dithered (stochastic) rounding takes a weight to one of its two neighbours on the grid, floor(w / Delta + u) Delta with u uniform
on [0, 1), so that its mean is the weight. Takes weights, steps and a gradient; gives moments, a survivor, and a certificate.

>>> import numpy as np
>>> dithered_moments(np.array([0.25, 1.0]), 1.0)
Moments(mean=array([0.25, 1.  ]), variance=array([0.1875, 0.    ]))
>>> round(dithered_loss_radius(np.full(10_000, 1e-3), 0.1, 0.05), 5)
0.01224
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unforgotten.theory.claims import claim
from unforgotten.theory.laws.gating import checked_step
from unforgotten.theory.models.gating_certificate import checked_curvature
from unforgotten.theory.models.response import vectors

U64 = 2.0**-53


class Moments(NamedTuple):
    """Mean and variance of Q(w) over the dither, elementwise."""

    mean: NDArray[Any]
    variance: NDArray[Any]


@claim("T19", kind="exact", source="Croci et al. 2022, Stochastic rounding, §2; derived here")
def dithered_moments(w: ArrayLike, step: float) -> Moments:
    """E[Q(w)] = w and Var[Q(w)] = step^2 phi (1 - phi) <= step^2 / 4, phi = frac(w / step): no bias, whatever w is.

    So E[Q(w') - Q(w)] = w' - w for every update, one of weights on the grid or in a dead zone too: none of the regimes
    of T11 occurs. No assumption about w; a scale that is fitted to w is a number here, adaptive grids included. Without
    clipping: absmax formats clip nothing. By T22 no quantizer without bias has less variance.

    Args:
        w: the weights, any shape.
        step: Delta > 0, in the same units.

    Raises:
        ValueError: the step is not positive and finite, or a weight is not finite.
    """
    x = _finite("w", w)
    low = np.floor(x / checked_step(step)) * step
    return Moments(x.copy(), np.maximum(x - low, 0.0) * np.maximum(low + step - x, 0.0))


@claim("T19", kind="exact", source="subtractive form: Gray & Stockham 1993; T7 with the dither for the place")
def shared_dither_survivor(w: ArrayLike, delta: ArrayLike, step: float, dither: ArrayLike) -> NDArray[Any]:
    """D = step (floor((w + delta) / step + u) - floor(w / step + u)): over u its law is that of T7, for every w.

    The place frac(w / step + u) is uniform whatever w is, so what U assumes of the weights holds of the dither: T7, T8
    and T13 are exact, and T18 with them, for models that share u, on one grid, if no code is clipped and the dithers of
    the weights are independent. With dithers of their own the mean of D is delta too, and its variance is the sum of the
    two of `dithered_moments`, however small the update.

    Args:
        w: the weights, any shape.
        delta: the update, in the same shape.
        step: Delta > 0.
        dither: u in [0, 1), in the same shape.

    Raises:
        ValueError: the step is not positive and finite, a number is not finite, or a dither is outside [0, 1).
    """
    x, d, u = _finite("w", w), _finite("delta", delta), _finite("dither", dither)
    if not ((u >= 0) & (u < 1)).all():
        raise ValueError("dither must be in [0, 1), got one outside")
    places = x / checked_step(step) + u
    return np.asarray(step * (np.floor(places + d / step) - np.floor(places)))


@claim("T19", kind="exact", source="Hoeffding 1963, thm 2; derived here")
def dithered_loss_radius(
    gradient: NDArray[Any], step: NDArray[Any] | float, alpha: float, *, curvature: NDArray[Any] | float = 0.0
) -> float:
    """P[F(Q(w')) < F(w') - x] <= alpha at x = |g∘Delta| sqrt(L / 2) + r, whatever the update; g the gradient at w'.

    Q(w') - w' = e has mean 0, independent entries and values Delta_i apart. For a function that bends down by no more
    than 1/2 sum_i c_i e_i^2 the remainder is r = 1/2 (sum_i c_i Delta_i^2 / 4 + |c∘Delta^2| sqrt(L / 2)); L = log(1 / alpha)
    for a linear F, else log(2 / alpha), as both parts may fail. F is a forget loss, and a metric that falls with
    it loses no more; turn the sign of F for the other side. It bounds gating and base shift together.

    Args:
        gradient: gradient of F at w', (n,); 0 for weights that are not quantized.
        step: Delta > 0, one number or (n,).
        alpha: probability in (0, 1).
        curvature: c >= 0, one number or (n,): F(w' + e) >= F(w') + g·e - 1/2 sum_i c_i e_i^2 within one step of w'.

    Returns:
        x in the units of F, rounded up.

    Raises:
        ValueError: an argument is out of its range, or the shapes differ.
    """
    g, _, s = vectors(gradient, np.zeros(np.shape(gradient)), step)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1), got alpha={alpha!r}")
    bends = checked_curvature(curvature, g.shape) * np.square(s)
    root = math.sqrt((math.log(2 if bends.any() else 1) - math.log(alpha)) / 2)
    rest = (math.fsum(bends) / 4 + _length(bends) * root) / 2
    return float(np.nextafter((_length(g * s) * root + rest) * (1 + 32 * U64), np.inf))


@claim("T19", kind="first-order", source="Taylor at w'; E[e_i e_j] = 0, i != j")
def dithered_curvature(hessian_diagonal: NDArray[Any], w: NDArray[Any], step: NDArray[Any] | float) -> float:
    """E F(Q(w)) - F(w) = 1/2 sum_i H_ii Delta_i^2 phi_i (1 - phi_i) + R, at most tr(H Delta^2) / 8 for H >= 0.

    What the noise of dither costs a model on average; R is 0 for a quadratic F. Rounding to nearest costs half as much
    where the places are uniform: the mean square of its error is 1/12 of a step's, that of dither 1/6.

    Args:
        hessian_diagonal: diagonal of the Hessian of F at w, (n,).
        w: the weights, (n,).
        step: Delta > 0, one number or (n,).

    Raises:
        ValueError: as `linear_response`.
    """
    h, x, s = vectors(hessian_diagonal, w, step)
    phase = np.mod(x / s, 1.0)
    return 0.5 * math.fsum(h * np.square(s) * phase * (1 - phase))


def _finite(name: str, x: ArrayLike) -> NDArray[Any]:
    values = np.asarray(x, np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, got nan or inf")
    return values


def _length(x: NDArray[Any]) -> float:
    """Return |x| of a vector, by a sum that is correctly rounded, in units of its largest entry."""
    unit = float(np.abs(x).max())
    return unit * math.sqrt(math.fsum(np.square(x / unit))) if unit else 0.0
