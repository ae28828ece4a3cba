"""T4, T5 and T13 on many updates at once: storage, optimizer steps, and the variance of a response."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unforgotten.theory.geometry.adamw import (
    adamw_displacement_upper_bound,
    adamw_ratio_upper_bound,
    adamw_step_upper_bound,
)
from unforgotten.theory.geometry.dead_zone import SIGNIFICANT_BITS, SMALLEST_NORMAL_EXPONENT, frozen_exponent
from unforgotten.theory.models.response import linear_response, response_variance_upper_bound
from unforgotten.verification.domains.bulk import chunks, largest_ratio
from unforgotten.verification.domains.histories import GRADIENTS, adam_steps, mixed_gradients
from unforgotten.verification.oracles import U64
from unforgotten.verification.recording.tallies import record

DECAYS = ((0.9, 0.999), (0.9, 0.95), (0.0, 0.99), (0.5, 0.3), (0.99, 0.9999))
STEPS = 24
RESPONSE_WEIGHTS = 6
ETA_BITS = 24  # significant bits of an update: with a lattice of at most 24, their sum is exact in float64


@pytest.mark.parametrize("dtype", sorted(SIGNIFICANT_BITS))
def test_frozen_exponent__freezes_in_bulk(dtype: str) -> None:
    """w of any normal binade, updates from 2^-12 to 4 ulps; the sum is exact in float64 and rounded once."""
    p, smallest = SIGNIFICANT_BITS[dtype], SMALLEST_NORMAL_EXPONENT[dtype]
    for rng, rows in chunks("frozen", dtype):
        exponent = rng.integers(max(smallest, -60), 9, rows)
        w = np.ldexp(rng.integers(2 ** (p - 1), 2**p, rows).astype(np.float64), exponent - p + 1)
        ulp = np.ldexp(1.0, exponent - p + 1)
        mantissa = rng.integers(2 ** (ETA_BITS - 1), 2**ETA_BITS, rows) / 2.0**ETA_BITS
        eta = ulp * mantissa * 2.0 ** rng.integers(-12, 3, rows)
        edge = np.ldexp(1.0, np.array([frozen_exponent(float(x), dtype) for x in eta]))
        frozen = w > edge
        record("frozen_exponent", dtype, rows=(w, eta), ratio=largest_ratio(eta[frozen], ulp[frozen] / 2))
        assert frozen.any()
        for side in (1, -1):
            assert (rounded(w + side * eta, p) == w)[frozen].all()


def rounded(x: NDArray[Any], significant_bits: int) -> NDArray[Any]:
    """To nearest even, normal numbers."""
    _, exponent = np.frexp(x)
    return np.asarray(np.ldexp(np.rint(np.ldexp(x, significant_bits - exponent)), exponent - significant_bits))


def simulation_error(decays: tuple[float, float]) -> NDArray[Any]:
    """Relative error of `adam_steps` in float64 at each step.

    Moments are sums of t terms, of one sign in the bound: 2 roundings a step each, and 8 of the quotient. The
    corrections 1 - b^t cancel: a power good to an ulp is off by 2 u.
    """
    t = np.arange(1, STEPS + 1)
    cancelled = sum(2 / (1 - beta**t) for beta in decays)
    return np.asarray((5 * STEPS + 8 + cancelled) * U64)


@pytest.mark.parametrize("decays", DECAYS, ids=str)
def test_adamw_step_upper_bound__holds_in_bulk(decays: tuple[float, float]) -> None:
    bounds = np.array([adamw_step_upper_bound(1.0, t, *decays) for t in range(1, STEPS + 1)])
    for rng, rows in chunks("adam", decays):
        g = mixed_gradients(rng, rows, STEPS, *decays)
        steps = np.abs(adam_steps(g, *decays))
        allowed = bounds * (1 + simulation_error(decays))
        record("adamw_step_upper_bound", decays, rows=(g,), ratio=float((steps / allowed).max()))
        assert (steps <= allowed).all()


def test_adamw_step_upper_bound__is_nearly_attained_in_bulk() -> None:
    """The extremal gradients are among those drawn: a ratio that stays far below 1 would mean that they are not."""
    g = GRADIENTS["extremal"](np.random.default_rng(0), 50, STEPS, 0.9, 0.999)
    reached = np.abs(adam_steps(g, 0.9, 0.999)).max()
    assert reached > 0.98 * adamw_ratio_upper_bound(STEPS)


@pytest.mark.parametrize("decays", DECAYS, ids=str)
def test_adamw_displacement_upper_bound__holds_in_bulk(decays: tuple[float, float]) -> None:
    """w_t = (1 - lr lambda) w_{t-1} - lr step_t from |w_0| <= 1; 4 roundings a step of numbers below the bound + 1."""
    lr, decay = 0.01, 0.1
    bound = adamw_displacement_upper_bound(lr, STEPS, *decays, weight_decay=decay, largest_weight=1.0)
    allowed = bound + ((9 * STEPS + 8) * U64 + simulation_error(decays).max()) * (1 + bound)
    for rng, rows in chunks("displacement", decays):
        g = mixed_gradients(rng, rows, STEPS, *decays)
        start = rng.uniform(-1, 1, rows)
        w = start
        for step in adam_steps(g, *decays).T:
            w = (1 - lr * decay) * w - lr * step
        moved = np.abs(w - start)
        record("adamw_displacement_upper_bound", decays, rows=(g, start), ratio=float(moved.max() / allowed))
        assert (moved <= allowed).all()


def test_response_variance_upper_bound__holds_in_bulk() -> None:
    """Against the exact variance of the gated update, in float64: its terms are rounded 8 times and summed."""
    for rng, rows in chunks("response"):
        gradient = rng.normal(size=(rows, RESPONSE_WEIGHTS)) * 2.0 ** rng.uniform(-20, 20, (rows, 1))
        step = 2.0 ** rng.uniform(-10, 10, gradient.shape)
        delta = step * rng.choice([-1, 1], step.shape) * 2.0 ** rng.uniform(-12, 3, (rows, 1))
        ratio = 0.0
        for g, d, s in zip(gradient, delta, step, strict=True):
            bound = response_variance_upper_bound(g, d, s)
            variance = linear_response(g, d, s).variance
            assert variance <= bound * (1 + (RESPONSE_WEIGHTS + 8) * U64)
            ratio = max(ratio, variance / bound)
        record("response_variance_upper_bound", "vectors", rows=(gradient, delta, step), ratio=ratio)
        assert math.isfinite(ratio)
