"""T20: the gain along the gradient, whose distance to 1 says which way a function moves where codes are gated.

The gain of T7 weighs every weight alike: it is |D|'s share along delta. A loss weighs them by its gradient, and a few weights of
large gradient can pass more than the whole update while most pass nothing. Takes the gradient of F at the unlearned weights
w', the update and the survivor D; gives the gain that F sees, and what comes back of F to first and second order.

>>> import numpy as np
>>> functional_gain(np.array([1.0, 0.1]), np.array([0.5, 0.5]), np.array([1.0, 0.0]))
1.8181818181818181
>>> share_returned(np.array([1.0, 0.1]), np.array([0.5, 0.5]), np.array([1.0, 0.0]), curvature=0.2).sign
-1
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.claims import claim
from unforgotten.theory.models.gating_certificate import checked_curvature
from unforgotten.theory.models.response import vectors

U64 = 2.0**-53


class Returned(NamedTuple):
    """What comes back of an update's first-order effect: its estimate, and an interval that holds it."""

    share: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1: some of the effect comes back; -1: there is more of it than before; 0: the interval holds both."""
        return int(self.low > 0) - int(self.high < 0)


@claim("T20", kind="first-order", source="derived here; Taylor at w', where nothing is random")
def functional_gain(gradient: NDArray[Any], delta: NDArray[Any], survivor: NDArray[Any]) -> float:
    """Gamma = g·D / g·delta with g the gradient of F at w': F(w + D) - F(w') = (Gamma - 1) g·delta + R.

    R is e'H e / 2 at a point between, e = D - delta. Where |1 - Gamma| |g·delta| exceeds |R|, the sign of 1 - Gamma is
    the sign of what comes back of F by gating. The gain of T7 has D·delta / |delta|^2 in its place and no such sign:
    it is Gamma for g = delta. Any quantizer, any grid: D is as measured. The base shift (T14) is not in it.

    Args:
        gradient: gradient of F at w', (n,).
        delta: the update w' - w, (n,).
        survivor: D = Q(w') - Q(w), (n,); delta itself for weights that are not quantized.

    Raises:
        ValueError: shapes differ, a number is not finite, or g·delta is 0 but for rounding.
    """
    g, d = _checked(gradient, delta, survivor)
    return math.fsum(g * np.asarray(survivor, np.float64)) / _first_order(g, d)


@claim("T20", kind="exact", source="derived here; Taylor with Lagrange's remainder")
def share_returned(
    gradient: NDArray[Any], delta: NDArray[Any], survivor: NDArray[Any], *, curvature: NDArray[Any] | float
) -> Returned:
    """[F(w') - F(w + D)] / g·delta = 1 - Gamma - R / g·delta, |R| <= 1/2 sum_i c_i e_i^2, e = D - delta.

    `sign` is that of 1 - Gamma where it is certain, and 0 elsewhere.

    Args:
        gradient: gradient of F at w', (n,).
        delta: the update, (n,).
        survivor: D, (n,).
        curvature: c >= 0, one number or (n,): |e'He| <= sum c_i e_i^2 for the Hessians of F from w' to w + D.

    Returns:
        The share with its interval, rounded outward. Above 0: F comes back by gating.

    Raises:
        ValueError: as `functional_gain`, or the curvature is out of its range.
    """
    g, d = _checked(gradient, delta, survivor)
    e = np.asarray(survivor, np.float64) - d
    size = abs(_first_order(g, d))
    products = g * e
    share = -math.fsum(products) / _first_order(g, d)
    bend = math.fsum(checked_curvature(curvature, g.shape) * np.square(e)) / 2
    # e rounds once, by a part of e; products and quotients of them
    rounding = 4 * U64 * (math.fsum(np.abs(products)) + abs(share) * math.fsum(np.abs(g * d)))
    radius = (bend + rounding) / size * (1 + 16 * U64) + 2.0**-1000
    return Returned(share, *(float(np.nextafter(share + s * radius, s * math.inf)) for s in (-1, 1)))


@claim("T20", kind="first-order", source="derived here; Taylor with a Hessian-vector product at w'")
def second_order_share_returned(
    gradient: NDArray[Any], delta: NDArray[Any], survivor: NDArray[Any], *, bend: float, third: float
) -> Returned:
    """[F(w') - F(w + D)] / g·delta = 1 - Gamma - e'H e / (2 g·delta) - R / g·delta, |R| <= K |e|^3 / 6, H at w'.

    One Hessian-vector product along e in place of a bound of every Hessian on the way.

    Args:
        gradient: gradient of F at w', (n,).
        delta: the update, (n,).
        survivor: D, (n,).
        bend: e'H e at w', e = D - delta: second derivative of x -> F(w' + x e) at 0.
        third: K >= |third derivative of F along a unit vector| from w' to w + D.

    Returns:
        The share with its interval, as `share_returned`.

    Raises:
        ValueError: as `functional_gain`, bend is not finite, or K is negative or not finite.
    """
    if not math.isfinite(bend):
        raise ValueError(f"bend must be finite, got bend={bend!r}")
    if not (math.isfinite(third) and third >= 0):
        raise ValueError(f"third must be finite and not negative, got third={third!r}")
    first = share_returned(gradient, delta, survivor, curvature=0.0)
    g, d = _checked(gradient, delta, survivor)
    effect = _first_order(g, d)
    share = first.share - bend / effect / 2
    rest = third / 6 * float(np.linalg.norm(np.asarray(survivor, np.float64) - d)) ** 3 / abs(effect)
    radius = (first.high - first.share + rest + 8 * U64 * (abs(share) + abs(first.share))) * (1 + (g.size + 32) * U64)
    return Returned(share, *(float(np.nextafter(share + s * radius, s * math.inf)) for s in (-1, 1)))


def _checked(gradient: NDArray[Any], delta: NDArray[Any], survivor: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    g, d, _ = vectors(gradient, delta, 1.0)
    kept = np.asarray(survivor, np.float64)
    if kept.shape != d.shape:
        raise ValueError(f"survivor must be of shape {d.shape}, as the update, got shape={kept.shape}")
    if not np.isfinite(kept).all():
        raise ValueError("survivor must be finite, got nan or inf")
    return g, d


def _first_order(g: NDArray[Any], d: NDArray[Any]) -> float:
    """Return g·delta.

    Raises:
        ValueError: it is no larger than its rounding can be.
    """
    products = g * d
    effect = math.fsum(products)
    if abs(effect) <= 4 * U64 * math.fsum(np.abs(products)):
        raise ValueError(f"g·delta must not be 0, got {effect!r}: the update has no effect of first order")
    return effect
