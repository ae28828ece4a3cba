"""The laws of `predict` and `energy` in jax, to be traced: one differentiable expression of lr, and of an rms.

Call under `jax.enable_x64(True)`, as `design` does; importing this module changes no setting. Needs jax:
`pip install 'unforgotten[verify]'`.

Takes a `Setup` and a learning rate as a jax scalar; gives sums over the weights, and from them a gain or a cosine.

>>> with jax.enable_x64(True): float(energy(0.25, 1.0))
...
0.25
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr

from unforgotten.theory.formats.names import Format
from unforgotten.theory.geometry.dead_zone import SIGNIFICANT_BITS, SMALLEST_NORMAL_EXPONENT, check_dtype
from unforgotten.theory.geometry.motion import FREE_SPACINGS
from unforgotten.theory.laws.absmax import AbsmaxLaw
from unforgotten.theory.laws.boundary import shape_of
from unforgotten.theory.laws.predict import PIECES_PER_BINADE

BINADES = 17  # from 2^-10 to 2^6 standard deviations, and one for the rounding of their exponents
FINE_LEVELS = 32  # above, pairs of equal steps are not summed: below a step |D| is 0 or a step, and above it T8 holds
EQUAL = 2.0**-20  # of a step: steps of a format that differ by less are equal
MOST_LEVELS_CROSSED = 64  # terms of the energy of a Gaussian update


class Setup(NamedTuple):
    """What stays the same while lr varies. The last four are known when the laws are traced.

    Attributes:
        thresholds, jumps: thresholds and jumps of the format over its absmax, (K - 1,): t_k and Delta_k.
        absmax, share: nodes of the law of absmax, (m,).
        steps: number of steps T.
        std: standard deviation of the Gaussian weights.
        significant_bits, smallest_normal: precision and exponent of the smallest normal number of the storage.
        equal: whether all steps of the format are equal.
    """

    thresholds: Any
    jumps: Any
    absmax: Any
    share: Any
    steps: float
    std: float
    significant_bits: int
    smallest_normal: int
    equal: bool


class Sums(NamedTuple):
    """E[D delta], E[delta^2] and E[D^2] a weight."""

    dot: Any
    delta_sq: Any
    surviving_sq: Any


def setup(fmt: Format, absmax: AbsmaxLaw, *, std: float, steps: int, dtype: str) -> Setup:
    """Describe Gaussian weights, `steps` equal steps of size lr of one sign, and a storage dtype, for tracing.

    Args:
        fmt: an absmax format.
        absmax: law of the block's absmax, in the units of the weights.
        std: standard deviation of the weights, > 0.
        steps: number of steps T >= 1.
        dtype: a key of SIGNIFICANT_BITS.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not (math.isfinite(std) and std > 0):
        raise ValueError(f"std must be positive and finite, got std={std!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got steps={steps}")
    check_dtype(dtype)
    shape = shape_of(fmt)
    jumps = np.diff(shape.levels)
    return Setup(
        shape.thresholds,
        jumps,
        absmax.values,
        absmax.weights,
        float(steps),
        std,
        SIGNIFICANT_BITS[dtype],
        SMALLEST_NORMAL_EXPONENT[dtype],
        bool(np.ptp(jumps) <= EQUAL * jumps[-1]),
    )


def sums(lr: Any, s: Setup) -> Sums:
    """Return expectations on the fixed grid over w ~ N(0, std^2) and absmax ~ H, of weights that do not set the absmax.

    `lr` is a jax scalar, to be traced: differentiable but where a binade starts or stops to move.
    """
    low, high, middle = _pieces(lr, s)
    parts = [_piece_sums(low, high, sign * _moved(sign * middle, lr, s)[0], s) for sign in (1.0, -1.0)]
    return Sums(*(sum(x) / 2 for x in zip(*parts, strict=True)))


def gain_of(lr: Any, s: Setup) -> Any:
    """Return the gain E[D delta] / E[delta^2] at one lr; nan where nothing moves."""
    e = sums(lr, s)
    return e.dot / e.delta_sq


def cosine_of(lr: Any, s: Setup) -> Any:
    """Return the cosine E[D delta] / sqrt(E[D^2] E[delta^2]) at one lr; nan where nothing moves or survives."""
    e = sums(lr, s)
    return e.dot / jnp.sqrt(e.delta_sq * e.surviving_sq)


def _shells(lr: Any, s: Setup) -> tuple[Any, Any, Any]:
    """Return lower ends, upper ends and velocities of the shells of |w|: free at first, then one a binade.

    As `motion.shells` at the nominal law, with what lies beyond the first standing binade kept at velocity 0.
    """
    p = s.significant_bits
    first = jnp.frexp(lr / FREE_SPACINGS)[1] + p - 1
    free = first > s.smallest_normal
    exponents = jnp.where(free, first, s.smallest_normal) + jnp.arange(p + 8)
    ulp = jnp.ldexp(1.0, exponents - p + 1)
    velocity = ulp * jnp.rint(lr / ulp)
    moving = jnp.cumprod(velocity * s.steps >= ulp / 2)
    upper = jnp.ldexp(1.0, exponents + 1)
    radius = jnp.where(free, jnp.ldexp(1.0, exponents[0]), 0.0)
    edges = jnp.concatenate([jnp.zeros(1), radius[None], upper])
    return edges[:-1], edges[1:], jnp.concatenate([lr[None], velocity * moving])


def _moved(y: Any, lr: Any, s: Setup) -> tuple[Any, Any]:
    """Return the displacement of weights y that drift upward, as `expected_displacement`, and where motion ends."""
    low, high, velocity = _shells(lr, s)
    speed = jnp.where(velocity > 0, velocity, 1.0)
    width = jnp.where(velocity > 0, high - low, 0.0)
    edge = jnp.max(jnp.where(velocity > 0, high, 0.0))
    spent = width / speed
    start = jnp.cumsum(spent) - spent
    clock = jnp.sign(y) * (jnp.clip(jnp.abs(y)[..., None] - low, 0.0, width) / speed).sum(-1)
    clock = clock + s.steps
    place = (jnp.clip(jnp.abs(clock)[..., None] - start, 0.0, spent) * speed).sum(-1)
    return jnp.where(jnp.abs(y) < edge, jnp.sign(clock) * place - y, 0.0), edge


def _pieces(lr: Any, s: Setup) -> tuple[Any, Any, Any]:
    """Return (lower, upper, middle) of intervals of w, both signs, that cover what moves, as `predict.pieces` does."""
    radius = _shells(lr, s)[1][0]
    _, edge = _moved(jnp.zeros(1), lr, s)
    log_std = math.log2(s.std)
    outer = jnp.minimum(edge, 2.0 ** (math.ceil(log_std) + 6))
    inner = jnp.minimum(jnp.maximum(radius, 2.0 ** (math.floor(log_std) - 10)), outer)
    fine = 1 + jnp.arange(1, PIECES_PER_BINADE + 1) / PIECES_PER_BINADE
    above = (inner * jnp.ldexp(1.0, jnp.arange(BINADES))[:, None] * fine).ravel()
    ends = jnp.concatenate([jnp.linspace(0.0, inner, PIECES_PER_BINADE + 1), above])
    ends = jnp.minimum(ends, outer)  # pieces beyond are empty
    ends = jnp.concatenate([-ends[:0:-1], ends])
    return ends[:-1], ends[1:], (ends[:-1] + ends[1:]) / 2


def _piece_sums(low: Any, high: Any, delta: Any, s: Setup) -> Sums:
    """Return sums over pieces that move by delta: D = sum of the jumps whose threshold lies between w and w + delta."""
    d, size = delta[:, None, None], jnp.abs(delta)[:, None]
    a = s.absmax[None, :, None]
    lowest, highest = (jnp.clip(x[:, None, None], -a, a) for x in (low, high))

    def below(x: Any) -> Any:
        return ndtr(jnp.clip(x, lowest, highest) / s.std)

    t = a * s.thresholds
    conditional = s.share / (ndtr(s.absmax / s.std) - ndtr(-s.absmax / s.std))
    mass = (ndtr(highest / s.std) - ndtr(lowest / s.std))[..., 0]
    crossed = (below(t) - below(t - d)) @ s.jumps * s.absmax
    if s.equal and len(s.thresholds) >= FINE_LEVELS:
        step = s.absmax * s.jumps[-1]
        square = jnp.where(size < step, step * jnp.abs(crossed), mass * energy(size, step))
    else:
        square = _square(t, d, below, s) * s.absmax**2
    return Sums(
        jnp.sum(crossed @ conditional * delta), jnp.sum(mass @ conditional * delta**2), jnp.sum(square @ conditional)
    )


def _square(t: Any, d: Any, below: Callable[[Any], Any], s: Setup) -> Any:
    """Return E[D^2] over absmax^2: jumps j and k count where both thresholds are crossed, by their distance k - j."""
    count, jumps = len(s.thresholds), jnp.asarray(s.jumps)

    def add(apart: Any, total: Any) -> Any:
        left = jnp.roll(t, -apart, axis=-1) - jnp.maximum(d, 0.0)
        right = t - jnp.minimum(d, 0.0)
        both = jnp.where(left < right, below(right) - below(left), 0.0)
        exists = jnp.arange(count) + apart < count
        weight = jnp.where(exists, jumps * jnp.roll(jumps, -apart), 0.0)
        return total + jnp.where(apart == 0, 1.0, 2.0) * (both @ weight)

    start = jnp.zeros((t + d).shape[:-1])
    return jax.lax.fori_loop(0, count, add, start)


def energy(size: Any, step: Any) -> Any:
    """Return E[D^2 | delta] = step^2 (n^2 + (2n + 1) phi), |delta| = (n + phi) step: T8, for tracing."""
    whole = jnp.floor(size / step)
    return step**2 * (whole**2 + (2 * whole + 1) * (size / step - whole))


def gaussian_energy(rms: Any, step: Any) -> Any:
    """Return E[D^2] = step E|d| + 2 step sum_{n>=1} E(|d| - n step)_+, d ~ N(0, rms^2): T8 averaged, for tracing.

    E(|d| - c)_+ = 2 (rms phi(c / rms) - c Phi(-c / rms)). Above MOST_LEVELS_CROSSED / 8 steps T8's limit rms^2 + step^2/6
    takes over, which is then exact to float64.
    """
    c = jnp.arange(MOST_LEVELS_CROSSED + 1) * step
    z = c / rms
    excess = 2 * (rms * jnp.exp(-z * z / 2) / math.sqrt(2 * math.pi) - c * ndtr(-z))
    series = step * (excess[0] + 2 * excess[1:].sum())
    return jnp.where(rms > MOST_LEVELS_CROSSED / 8 * step, rms**2 + step**2 / 6, series)
