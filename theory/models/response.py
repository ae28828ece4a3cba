"""T13: what the surviving update does to a function of the weights, to first order."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.claims import claim

U64 = 2.0**-53


class Response(NamedTuple):
    """Mean and variance of g·D, and the largest |g_i Delta_i|, for the tail bounds."""

    mean: float
    variance: float
    largest: float


@claim("T13", kind="first-order", source="T7; linearity of expectation, independence")
def linear_response(gradient: NDArray[Any], delta: NDArray[Any], step: NDArray[Any] | float) -> Response:
    """E[g·D] = g·delta and Var[g·D] = sum_i g_i^2 Delta_i^2 phi_i (1 - phi_i), phi = frac(|delta| / Delta).

    Assumption U on a fixed uniform grid, unclipped, and positions independent *between* weights, which the variance
    and every tail bound need and the mean does not. On another grid the mean is G g·delta with the gain G of T7.
    F(Q(w) + D) - F(Q(w)) is g·D to first order; `curvature` holds the second.

    Args:
        gradient: gradient of F at Q(w), (n,).
        delta: the update, (n,).
        step: Delta > 0, one number or (n,).

    Raises:
        ValueError: shapes differ, a step is not positive, or a number is not finite.
    """
    g, d, s = vectors(gradient, delta, step)
    return Response(float(g @ d), float(np.square(g) @ gating_variance(d, s)), float(np.abs(g * s).max()))


def gating_variance(delta: NDArray[Any], step: NDArray[Any] | float) -> NDArray[Any]:
    """Return Var[D | delta] = Delta^2 phi (1 - phi) of T7, elementwise."""
    phase = np.mod(np.abs(delta) / step, 1.0)
    return np.asarray(np.square(step) * phase * (1 - phase))


@claim("T13", kind="law", source="phi (1 - phi) <= min(phi, 1/4), phi <= |delta| / Delta")
def response_variance_upper_bound(gradient: NDArray[Any], delta: NDArray[Any], step: NDArray[Any] | float) -> float:
    """Var[g·D] <= sum_i g_i^2 Delta_i min(|delta_i|, Delta_i / 4): the noise that gating adds; rounded up.

    The first branch is near equality for |delta| << Delta; the second holds however large the update.

    Args:
        gradient: gradient of F at Q(w), (n,).
        delta: the update, (n,).
        step: Delta > 0, one number or (n,).

    Raises:
        ValueError: as `linear_response`.
    """
    g, d, s = vectors(gradient, delta, step)
    terms = (g * s) * (g * np.minimum(np.abs(d), s / 4))  # no square that underflows and is scaled up again
    bound = math.fsum(terms) * (1 + 8 * U64) + g.size * 2.0**-1073
    return float(np.nextafter(bound, np.inf))


def vectors(
    first: NDArray[Any], delta: NDArray[Any], step: NDArray[Any] | float
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return the arguments as float64 vectors of one length.

    Raises:
        ValueError: shapes differ, a step is not positive, or a number is not finite.
    """
    g, d = np.asarray(first, np.float64), np.asarray(delta, np.float64)
    s = np.asarray(step, np.float64)
    if not (g.ndim == 1 and g.size and g.shape == d.shape and s.shape in ((), g.shape)):
        raise ValueError(f"vectors must have one length n >= 1, got {g.shape}, {d.shape}, {s.shape}")
    if not (np.isfinite(g).all() and np.isfinite(d).all()):
        raise ValueError("gradient and delta must be finite, got nan or inf")
    if not (np.isfinite(s).all() and (s > 0).all()):
        raise ValueError(f"step must be positive and finite, got step={step!r}")
    return g, d, np.broadcast_to(s, g.shape)
