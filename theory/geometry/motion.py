"""T4 with T5: which weights an optimizer can move in a coarse storage dtype, and how far in expectation.

Takes the law of steps of an optimizer, a learning rate, a number of steps and a storage dtype; gives the mean
displacement of a weight of each size.

>>> law = step_law("adamw")
>>> movable_edge(law, lr=1e-5, steps=500, dtype="bfloat16")
0.00390625
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from unforgotten.theory.claims import claim
from unforgotten.theory.geometry.dead_zone import SIGNIFICANT_BITS, SMALLEST_NORMAL_EXPONENT, check_dtype

FREE_SPACINGS = 16  # a step of this many spacings or more moves as if there were none, within 1/32
MOST_SPACINGS = 41  # FREE_SPACINGS and 8 standard deviations of a step's noise, at most 3 spacings each
ADAM_BETA1 = 0.9
OPTIMIZERS = ("adamw", "sign")  # "sign": sign-SGD, and Lion but for its memory
RATIO_NODES = 16


class StepLaw(NamedTuple):
    """Steps of lr * (drift + noise): the drift is a weight's own and stays, the noise is new at each step.

    Attributes:
        drift: the long-run mean of a weight's steps over lr, in [-1, 1], (m,).
        noise: standard deviation of a step around it, over lr, (m,).
        weight: shares of the weights, (m,), sum 1.
        signed: whether every step has size lr, the noise being in its sign alone.
    """

    drift: NDArray[Any]
    noise: NDArray[Any]
    weight: NDArray[Any]
    signed: bool

    @property
    def ratio(self) -> float:
        """Root mean square of the drift: |delta| / (lr * steps) where the storage does not round."""
        return float(np.sqrt(self.weight @ self.drift**2))


def step_law(optimizer: str, snr: float = math.inf) -> StepLaw:
    """Return the law of steps under stationary gradients g = mu + sigma xi, mu / sigma ~ N(0, snr^2) over the weights.

    AdamW: v tends to E[g^2] and m to the mean of (1 + beta1) / (1 - beta1) gradients, so a step is N(s, q (1 - s^2)),
    s = z / sqrt(1 + z^2), q = (1 - beta1) / (1 + beta1). A sign optimizer: +-lr with mean s = erf(z / sqrt 2). At
    snr = inf both step by lr with one sign for ever: the nominal model.

    Left out, and seen in training: gradients that turn or grow, which make AdamW's steps larger than lr where a weight's
    recent energy exceeds that of its run (`step_energy`), and its first
    1 / (1 - beta1) steps, whose noise is larger.

    Args:
        optimizer: "adamw" or "sign".
        snr: spread of the weights' signal-to-noise ratios, > 0; inf for the nominal model.

    Raises:
        ValueError: the optimizer is unknown, or the ratio is not positive.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got optimizer={optimizer!r}")
    if not snr > 0:
        raise ValueError(f"snr must be positive, got snr={snr!r}")
    signed = optimizer == "sign"
    if math.isinf(snr):
        return StepLaw(np.array([-1.0, 1.0]), np.zeros(2), np.full(2, 0.5), signed)
    x, weight = np.polynomial.hermite_e.hermegauss(RATIO_NODES)
    z = snr * x
    drift = scipy.special.erf(z / math.sqrt(2)) if signed else z / np.sqrt(1 + z * z)
    share = 1.0 if signed else (1 - ADAM_BETA1) / (1 + ADAM_BETA1)
    return StepLaw(drift, np.sqrt(share * (1 - drift**2)), weight / weight.sum(), signed)


@claim("T5", kind="law", source="E[rint(X)] as a sum of normal tails, T4 for the rounding")
def rounded_velocity(drift: float, noise: float, step: float, ulp: ArrayLike) -> NDArray[Any]:
    """E[movement of one step] = ulp sum_{k>=1} [P(X > k - 1/2) - P(X < 1/2 - k)], X ~ N(s, q^2) step / ulp.

    Rounding to nearest: nothing for certain steps below half an ulp, a whole ulp for those above, s * step once the
    noise spans an ulp. So the dead zone's edge depends on the gradients' noise.

    Args:
        drift: s.
        noise: q >= 0.
        step: lr > 0.
        ulp: spacings of the storage, > 0, at least step / FREE_SPACINGS, any shape.
    """
    ulp = np.asarray(ulp, np.float64)
    mean = drift * step / ulp
    if noise == 0:
        return ulp * np.rint(mean)
    spread = (noise * step / ulp)[..., None]
    halves = np.arange(MOST_SPACINGS) + 0.5
    up = scipy.special.ndtr((mean[..., None] - halves) / spread)
    down = scipy.special.ndtr((-mean[..., None] - halves) / spread)
    return ulp * (up - down).sum(axis=-1)


class Shells(NamedTuple):
    """Where a weight can move: shells of |w| with upper ends `edges` (m,), ascending, and a mean `velocity` in each.

    Empty where nothing moves.
    """

    edges: NDArray[Any]
    velocity: NDArray[Any]


def shells(law: StepLaw, node: int, lr: float, steps: int, dtype: str) -> Shells:
    """Return the shells of a node of a step law: one below `free_radius`, then binades up to the first that stands.

    A binade stands when `steps` mean steps make less than half a spacing.
    """
    drift, noise = abs(float(law.drift[node])), float(law.noise[node])
    radius = free_radius(lr, dtype)
    low = SMALLEST_NORMAL_EXPONENT[dtype]
    first = round(math.log2(radius)) if radius else low
    exponents = np.arange(first, first + SIGNIFICANT_BITS[dtype] + 8)
    ulp = np.ldexp(1.0, exponents - SIGNIFICANT_BITS[dtype] + 1)
    if law.signed:
        velocity = drift * ulp * np.rint(lr / ulp)
    else:
        velocity = rounded_velocity(drift, noise, lr, ulp)
    moving = int(np.argmax(np.append(velocity * max(steps, 1) < ulp / 2, True)))
    edges = np.ldexp(1.0, exponents[:moving] + 1)
    if not radius:
        return Shells(edges, velocity[:moving])
    return Shells(np.append(radius, edges), np.append(drift * lr, velocity[:moving]))


def free_radius(lr: float, dtype: str) -> float:
    """Return the power of two below which the spacing is at most lr / FREE_SPACINGS; 0 if not even subnormals are."""
    _, exponent = math.frexp(lr / FREE_SPACINGS)
    exponent += SIGNIFICANT_BITS[dtype] - 1
    return math.ldexp(1.0, exponent) if exponent > SMALLEST_NORMAL_EXPONENT[dtype] else 0.0


@claim("T5", kind="first-order", source="flow of the mean velocity through the binades")
def expected_displacement(
    w: NDArray[Any], law: StepLaw, node: int, *, lr: float, steps: int, dtype: str
) -> NDArray[Any]:
    """delta(w) = y(T) - w for dy/dt = V(|y|), V the rounded velocity of y's binade: the mean motion of a weight.

    It moves along the sign of its drift, passes 0 freely, slows where the spacing grows, and stops at the first
    binade that stands; a weight that starts beyond never moves. The spread around the mean is left out: it is of
    order lr sqrt(steps).

    Args:
        w: weights, any shape.
        law: law of the steps.
        node: index of the drift of the law that these weights have.
        lr: learning rate > 0.
        steps: number of steps T >= 0.
        dtype: dtype of the stored weights, "float32", "float16" or "bfloat16".

    Raises:
        ValueError: lr is not positive, steps is negative, or the dtype is unknown.
    """
    check_training(lr, steps, dtype)
    edges, velocity = shells(law, node, lr, steps, dtype)
    if not edges.size or steps == 0:
        return np.zeros(np.shape(w))
    times = np.cumsum(np.diff(edges, prepend=0.0) / velocity)
    clock = np.concatenate([-times[::-1], [0.0], times])
    place = np.concatenate([-edges[::-1], [0.0], edges])
    y = np.asarray(w, np.float64) * np.sign(law.drift[node])
    arrived = np.interp(np.interp(y, place, clock) + steps, clock, place)
    return np.where(np.abs(y) < edges[-1], (arrived - y) * np.sign(law.drift[node]), 0.0)


def movable_edge(law: StepLaw, *, lr: float, steps: int, dtype: str) -> float:
    """Return the power of two from which on no weight moves half a spacing in `steps` mean steps; 0 if none moves.

    At the nominal law it is 2^e with e = `frozen_exponent(lr)`, but where lr is exactly half a spacing.
    """
    check_training(lr, steps, dtype)
    ends = [shells(law, i, lr, steps, dtype).edges for i in range(len(law.drift))]
    return max(float(edges[-1]) if edges.size else 0.0 for edges in ends)


def check_training(lr: float, steps: int, dtype: str) -> None:
    """Refuse a learning rate, a number of steps or a dtype out of its domain.

    Raises:
        ValueError: with the rule.
    """
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr must be positive and finite, got lr={lr!r}")
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got steps={steps}")
    check_dtype(dtype)
