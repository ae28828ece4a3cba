"""T18: how much of an update's effect the gating of codes can take back, with a stated probability.

Gating puts the survivor D in place of the update delta (T14): of the effect F(w') - F(w) it brings the share
[F(w') - F(w + D)] / [F(w') - F(w)] back. Takes the gradient at w', the update and the steps; gives an effective number of
weights, an upper bound of the share, and a step below which no format of that kind brings back more.

>>> import numpy as np
>>> g, delta = np.ones(10_000), np.full(10_000, 1e-3)
>>> round(effective_weights(g, delta, 0.01))
1000
>>> round(gating_share_upper_bound(g, delta, 0.01, 0.05), 3)
0.087
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.claims import claim
from unforgotten.theory.models.response import response_variance_upper_bound, vectors
from unforgotten.theory.models.tails import bernstein_radius, bernstein_tail_upper_bound

U64 = 2.0**-53
FAR = 400  # steps of 2^-400 to 2^400 are looked at
SOURCE = "derived here; Bernstein's inequality (T13), with the gradient at w' and the effect as measured"


class Noise(NamedTuple):
    """Bounds of a sum of independent centred terms: its variance, and the size of its largest term."""

    variance: float
    largest: float


@claim("T18", kind="law", source="derived here; V of T13")
def effective_weights(
    gradient: NDArray[Any], delta: NDArray[Any], step: NDArray[Any] | float, *, effect: float | None = None
) -> float:
    """n_eff = effect^2 / sum_i g_i^2 Delta_i min(|delta_i|, Delta_i / 4): gating's relative noise is at most n_eff^(-1/2).

    For n like weights that move by less than a quarter step it is n |delta| / Delta, the expected number of codes that
    change. Assumption U, as in `gating_share_upper_bound`; under a shared dither (T19) exact.

    Args:
        gradient: gradient of F at w', (n,).
        delta: the update w' - w, (n,).
        step: Delta > 0, one number or (n,), of a fixed uniform grid.
        effect: F(w') - F(w), not 0; None for its first order g·delta.

    Returns:
        n_eff, rounded down; inf where V is 0.

    Raises:
        ValueError: as `linear_response`, or the effect is 0 or not finite.
    """
    variance = response_variance_upper_bound(gradient, delta, step)
    size = _effect(gradient, delta, effect)
    # a quotient twice, so that no square underflows
    return float(np.nextafter(size / variance * size * (1 - 4 * U64), 0.0))


@claim("T18", kind="law", source=SOURCE)
def gating_share_tail_upper_bound(
    share: float,
    gradient: NDArray[Any],
    delta: NDArray[Any],
    step: NDArray[Any] | float,
    *,
    effect: float | None = None,
) -> float:
    """P[|g·(D - delta)| >= y |effect|] <= 2 exp(-n_eff y^2 / (2 + 2 M y |effect| / (3 V))), M = max |g_i Delta_i|.

    First order: exact for a linear F. `gating_share_upper_bound` takes curvature in. Assumption U as there.

    Args:
        share: y >= 0.
        gradient: gradient of F at w', (n,).
        delta: the update, (n,).
        step: Delta > 0, one number or (n,).
        effect: F(w') - F(w), not 0; None for g·delta.

    Returns:
        A probability, at most 1, rounded up.

    Raises:
        ValueError: as `effective_weights`, or the share is negative or not finite.
    """
    if not (math.isfinite(share) and share >= 0):
        raise ValueError(f"share must be finite and not negative, got share={share!r}")
    noise = _linear_noise(gradient, delta, step)
    x = share * _effect(gradient, delta, effect) * (1 - 4 * U64)
    return bernstein_tail_upper_bound(x, noise.variance, noise.largest)


@claim("T18", kind="law", source=SOURCE)
def gating_share_upper_bound(
    gradient: NDArray[Any],
    delta: NDArray[Any],
    step: NDArray[Any] | float,
    alpha: float,
    *,
    effect: float | None = None,
    curvature: NDArray[Any] | float = 0.0,
) -> float:
    """P[|F(w + D) - F(w')| > y |F(w') - F(w)|] <= alpha: the largest share that gating takes back or adds is y.

    F(w + D) - F(w') = g·e + R with e = D - delta and |R| <= 1/2 sum_i c_i e_i^2. g·e is within Bernstein's radius of 0;
    so is sum c_i e_i^2 of its mean, which is at most sum_i c_i Delta_i min(|delta_i|, Delta_i / 4), each at alpha / 2.
    The gradient is at w', where nothing is random; the effect is F(w') - F(w) itself, so that no gradient is averaged.

    Assumption U: given g and delta, the places of the weights in their cells are uniform and independent, on a fixed
    uniform grid, and no code is clipped. Of the base shift (T14) nothing is said. Exact where one dither is shared by
    both models (T19).

    Args:
        gradient: gradient of F at w', (n,).
        delta: the update, (n,).
        step: Delta > 0, one number or (n,).
        alpha: probability in (0, 1).
        effect: F(w') - F(w), not 0; None for g·delta, which is its first order.
        curvature: c >= 0, one number or (n,): |e'He| <= sum c_i e_i^2 for the Hessians of F within one step of w'. 0 for
            a linear F.

    Returns:
        y, rounded up. Above 1 gating may bring everything back.

    Raises:
        ValueError: an argument is out of its range, shapes differ, or the effect is 0.
    """
    size = _effect(gradient, delta, effect)
    return _up(_radius(gradient, delta, step, alpha, curvature) / size)


@claim("T18", kind="law", source="derived here; V, M and the curvature term rise with every step")
def safe_step_lower_bound(
    gradient: NDArray[Any],
    delta: NDArray[Any],
    share: float,
    alpha: float,
    *,
    effect: float | None = None,
    curvature: NDArray[Any] | float = 0.0,
    profile: NDArray[Any] | float = 1.0,
) -> float:
    """P[gating brings back more than y] <= alpha for steps Delta_i <= x s_i, s a profile: x is returned.

    The bound of `gating_share_upper_bound` rises with every step, so that it holds for all formats with such steps at
    once: "no format with step at most x brings back more than y through equal codes". Larger steps may be safe too.

    Args:
        gradient: gradient of F at w', (n,).
        delta: the update, (n,).
        share: y > 0.
        alpha: probability in (0, 1).
        effect: F(w') - F(w), not 0; None for g·delta.
        curvature: as in `gating_share_upper_bound`.
        profile: s > 0, one number or (n,): steps of the weights relative to one another.

    Returns:
        The largest double x at which the computed bound is at most y; 0 if that is below 2^-400, inf if above 2^400.

    Raises:
        ValueError: as `gating_share_upper_bound`, or the share is not positive and finite.
    """
    if not (math.isfinite(share) and share > 0):
        raise ValueError(f"share must be positive and finite, got share={share!r}")
    g, d, s = vectors(gradient, delta, profile)
    size = _effect(g, d, effect)

    def holds(x: float) -> bool:
        return _up(_radius(g, d, x * s, alpha, curvature) / size) <= share

    return _last_held(holds)


def _radius(
    gradient: NDArray[Any],
    delta: NDArray[Any],
    step: NDArray[Any] | float,
    alpha: float,
    curvature: NDArray[Any] | float,
) -> float:
    """Return a bound of |F(w + D) - F(w')| that fails with probability at most alpha, rounded up."""
    linear = _linear_noise(gradient, delta, step)
    c = checked_curvature(curvature, np.shape(gradient))
    if not c.any():
        return bernstein_radius(*linear, alpha)
    root = np.sqrt(c)
    mean = response_variance_upper_bound(root, delta, step)
    # e_i^2 of two values that differ by at most Delta^2, variance at most Delta^2 Var[D_i]
    squares = _linear_noise(c * step, delta, step)
    spread = mean * (1 + 4 * U64) + bernstein_radius(*squares, alpha / 2) * (1 + 4 * U64)
    return _up(bernstein_radius(*linear, alpha / 2) + spread / 2)


def _linear_noise(gradient: NDArray[Any], delta: NDArray[Any], step: NDArray[Any] | float) -> Noise:
    g, d, s = vectors(gradient, delta, step)
    return Noise(response_variance_upper_bound(g, d, s), float(np.abs(g * s).max()) * (1 + 4 * U64))


def checked_curvature(curvature: NDArray[Any] | float, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the curvature of each weight.

    Raises:
        ValueError: one is negative or not finite, or the shape is another.
    """
    c = np.asarray(curvature, np.float64)
    if not (np.isfinite(c).all() and (c >= 0).all()):
        raise ValueError(f"curvature must be finite and not negative, got curvature={curvature!r}")
    if c.shape not in ((), shape):
        raise ValueError(f"curvature must be one number or of shape {shape}, got shape={c.shape}")
    return np.broadcast_to(c, shape)


def _effect(gradient: NDArray[Any], delta: NDArray[Any], effect: float | None) -> float:
    """Return |effect|, rounded down."""
    if effect is None:
        g, d, _ = vectors(gradient, delta, 1.0)
        products = g * d
        slack = math.fsum(np.abs(products)) * 4 * U64 + products.size * 2.0**-1074
        size = abs(math.fsum(products)) - slack
    else:
        size = abs(float(effect))
    if not (math.isfinite(size) and size > 0):
        raise ValueError(f"effect must be finite and not 0, got effect={effect!r} and |g·delta| rounded down {size!r}")
    return size


def _last_held(holds: Callable[[float], bool]) -> float:
    """Return the largest double of [2^-FAR, 2^FAR] at which a falling condition holds; inf beyond, 0 if at none."""
    low = next((2.0**-k for k in range(FAR + 1) if holds(2.0**-k)), None)
    high = next((2.0**k for k in range(FAR + 1) if not holds(2.0**k)), None)
    if low is None or high is None:
        return 0.0 if low is None else math.inf
    inside, outside = (int(np.float64(x).view(np.int64)) for x in (low, high))
    while outside - inside > 1:
        middle = (inside + outside) // 2
        inside, outside = (middle, outside) if holds(_double(middle)) else (inside, middle)
    return _double(inside)


def _double(bits: int) -> float:
    return float(np.int64(bits).view(np.float64))


def _up(value: float) -> float:
    return float(np.nextafter(value * (1 + 8 * U64), np.inf))
