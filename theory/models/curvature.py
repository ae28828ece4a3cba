"""T13, second order: gating noise shifts the mean of a curved function, up to a remainder that is stated."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.claims import claim
from unforgotten.theory.models.response import gating_variance, vectors

U64 = 2.0**-53


@claim("T13", kind="first-order", source="Taylor at Q(w); E[D_i D_j] = delta_i delta_j, i != j")
def gating_curvature(hessian_diagonal: NDArray[Any], delta: NDArray[Any], step: NDArray[Any] | float) -> float:
    """E F(Q(w) + D) - F(Q(w) + delta) = 1/2 sum_i H_ii Var[D_i] + R: what gating does to the mean of F.

    The cross terms of the Hessian cancel, as do g·D and g·delta. Under U as in `linear_response`, positions
    independent between weights; R is bounded by `curvature_remainder_upper_bound`.

    Args:
        hessian_diagonal: diagonal of the Hessian of F at Q(w), (n,).
        delta: the update, (n,).
        step: Delta > 0, one number or (n,).

    Raises:
        ValueError: as `linear_response`.
    """
    h, d, s = vectors(hessian_diagonal, delta, step)
    return 0.5 * float(h @ gating_variance(d, s))


@claim("T13", kind="first-order", source="Taylor with Lagrange remainder; Cauchy-Schwarz")
def curvature_remainder_upper_bound(third: float, delta: NDArray[Any], step: NDArray[Any] | float) -> float:
    """|R| <= K/6 (sqrt(E|D|^2 E|D|^4) + |delta|^3), K >= |third derivative of F|: the rest of `gating_curvature`.

    Order: with delta and Delta both scaled by h the curvature term is O(h^2) and R is O(h^3). With Delta fixed and
    delta -> 0 both are O(|delta|): the expansion is one in the *step*, and no better for a smaller update.

    Args:
        third: bound of |d^3/dx^3 F(p + x u)|, |u|_2 = 1, for p on the segments from Q(w) to Q(w) + D and Q(w) + delta.
        delta: the update, (n,).
        step: Delta > 0, one number or (n,).

    Returns:
        The bound in the units of F, rounded up.

    Raises:
        ValueError: as `linear_response`, or K is negative or not finite.
    """
    if not (math.isfinite(third) and third >= 0):
        raise ValueError(f"third must be finite and not negative, got third={third!r}")
    _, d, s = vectors(np.zeros(np.shape(delta)), delta, step)
    whole, phase = np.divmod(np.abs(d) / s, 1.0)
    unit = float(s.max())  # lengths in it: fourth powers of small steps would underflow
    second, fourth = ((s / unit) ** k * (whole**k * (1 - phase) + (whole + 1) ** k * phase) for k in (2, 4))
    square = math.fsum(second)
    fourth_of_norm = square**2 + math.fsum(fourth - second**2)
    lengths = math.sqrt(square * fourth_of_norm) + float(np.linalg.norm(d / unit)) ** 3
    # sums of n non-negative terms of 20 roundings each, and the powers and roots of them
    bound = third / 6 * lengths * unit * unit * unit * (1 + (d.size + 80) * U64)
    return float(np.nextafter(bound, np.inf))
