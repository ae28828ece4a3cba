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
    For any fixed g this is exact. That F(Q(w) + D) - F(Q(w)) is g·D, g the gradient at Q(w), is first order, with a
    remainder up to half the largest curvature times |D|^2. Where w has been trained on F that gradient is near 0 and
    the remainder is all: then take g from `mean_gradient`, with which g·delta is right to third order.

    Args:
        gradient: g, (n,).
        delta: the update, (n,).
        step: Delta > 0, one number or (n,).

    Raises:
        ValueError: shapes differ, a step is not positive, or a number is not finite.
    """
    g, d, s = vectors(gradient, delta, step)
    return Response(float(g @ d), float(np.square(g) @ gating_variance(d, s)), float(np.abs(g * s).max()))


def mean_gradient(gradients: NDArray[Any]) -> NDArray[Any]:
    """Return the gradient in the mean over a path by the trapezoidal rule, for `path_change`: (n,).

    Args:
        gradients: gradients of F at m >= 2 equally spaced points from y to y + delta, (m, n).

    Raises:
        ValueError: there are fewer than two points.
    """
    g = np.asarray(gradients, np.float64)
    if g.ndim != 2 or len(g) < 2:
        raise ValueError(f"gradients must be of two points or more, (m, n), got shape={g.shape}")
    weights = np.ones(len(g))
    weights[[0, -1]] = 0.5
    return np.asarray(weights / (len(g) - 1) @ g)


@claim("T13", kind="first-order", source="trapezoidal rule with Peano's kernel t (1 - t) / 2")
def path_change(gradients: NDArray[Any], delta: NDArray[Any]) -> float:
    """F(y + delta) - F(y) = mean of g over the path · delta + R, |R| <= K |delta|^3 / 12 (m - 1)^2: at a minimum too.

    With g at every point of the path it is exact. The trapezoidal rule takes m of them; two, the ends, are enough for
    a quadratic F, of which the gradient at y alone gives nothing at its minimum. K is as in
    `path_remainder_upper_bound`. For gating take y = Q(w) and delta or D; for T14's base shift the other corners.

    Args:
        gradients: gradients of F at m >= 2 equally spaced points from y to y + delta, (m, n).
        delta: the update, (n,).

    Raises:
        ValueError: shapes differ, there are fewer than two points, or a number is not finite.
    """
    g, d, _ = vectors(mean_gradient(gradients), delta, 1.0)
    return float(g @ d)


@claim("T13", kind="first-order", source="Peano kernel of the trapezoidal rule: its integral over [0, 1] is 1/12")
def path_remainder_upper_bound(third: float, delta: NDArray[Any], points: int = 2) -> float:
    """|R| <= K |delta|^3 / 12 (m - 1)^2, K >= |third derivative of F| along delta: the rest of `path_change`; rounded up.

    Args:
        third: bound of |d^3/dx^3 F(p + x u)|, u = delta / |delta|, for p on the segment from y to y + delta.
        delta: the update, (n,).
        points: m >= 2.

    Raises:
        ValueError: the update is no vector of finite numbers, K is negative or not finite, or m is below 2.
    """
    if not (math.isfinite(third) and third >= 0):
        raise ValueError(f"third must be finite and not negative, got third={third!r}")
    if points < 2:
        raise ValueError(f"points must be at least 2, got points={points}")
    _, d, _ = vectors(np.zeros(np.shape(delta)), delta, 1.0)
    unit = float(np.abs(d).max())
    if unit == 0 or third == 0:
        return 0.0
    length = float(np.linalg.norm(d / unit))
    bound = third / (12 * (points - 1) ** 2) * length**3 * unit * unit * unit
    return float(np.nextafter(bound * (1 + (3 * d.size + 32) * U64), np.inf))


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
