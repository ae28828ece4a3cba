from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from unforgotten.theory.laws.energy import gated_energy
from unforgotten.theory.laws.gating import gated_mean, gated_variance
from unforgotten.theory.models.dither import (
    dithered_curvature,
    dithered_loss_radius,
    dithered_moments,
    shared_dither_survivor,
)
from unforgotten.verification.chance import hoeffding_radius, rng_for
from unforgotten.verification.oracles import U64

sixteenths = st.integers(-64, 64).map(lambda k: k / 16)
steps = st.sampled_from([0.25, 0.5, 1.0, 2.0])
levels = st.sampled_from([0.5, 0.2, 0.05, 1e-3])
DITHERS = (np.arange(64) + 0.5) / 64
"""Midpoints: a function that is constant between multiples of 1/64 has its exact mean over them."""


@given(sixteenths, steps)
def test_dithered_moments__are_those_of_all_dithers(w: float, step: float) -> None:
    values = step * np.floor(w / step + DITHERS)
    mean, variance = dithered_moments(w, step)
    assert Fraction(float(mean)) == sum(map(Fraction, values.tolist()), Fraction(0)) / 64 == Fraction(w)
    square = sum((Fraction(x) ** 2 for x in values.tolist()), Fraction(0)) / 64
    assert Fraction(float(variance)) == square - Fraction(w) ** 2 <= Fraction(step) ** 2 / 4


@given(sixteenths, sixteenths, steps)
def test_shared_dither_survivor__has_the_law_of_gating_for_every_weight(w: float, delta: float, step: float) -> None:
    """Weights on the grid, in a dead zone, anywhere: T7's mean and variance and T8's energy, exactly."""
    survivors = shared_dither_survivor(np.full(64, w), np.full(64, delta), step, DITHERS)
    mean = sum(map(Fraction, survivors.tolist()), Fraction(0)) / 64
    square = sum((Fraction(x) ** 2 for x in survivors.tolist()), Fraction(0)) / 64
    assert mean == Fraction(delta) == Fraction(float(gated_mean(delta, step)))
    assert square - mean**2 == Fraction(float(gated_variance(delta, step)))
    assert square == Fraction(float(gated_energy(delta, step)))


def test_shared_dither_survivor__passes_what_nearest_rounding_swallows() -> None:
    """Weights on the grid and an update of a tenth of a step (T11): to nearest nothing passes, dithered all of it."""
    w = np.arange(-1000.0, 1000.0)
    u = rng_for("swallowed").uniform(size=w.size)
    assert (np.rint(w + 0.1) == np.rint(w)).all()
    passed = shared_dither_survivor(w, np.full(w.size, 0.1), 1.0, u)
    assert abs(passed.mean() - 0.1) <= hoeffding_radius(w.size)
    assert hoeffding_radius(w.size) < 0.1


def outcomes(w: list[Fraction], step: list[Fraction]) -> list[tuple[Fraction, list[Fraction]]]:
    """Return (probability, Q(w) - w) of every joint outcome."""
    rows = []
    for x, s in zip(w, step, strict=True):
        phase = x / s % 1
        rows.append(((1 - phase, -phase * s), (phase, (1 - phase) * s)))
    return [(math.prod((p for p, _ in choice), start=Fraction(1)), [e for _, e in choice]) for choice in product(*rows)]


@st.composite
def models(draw: st.DrawFn) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Draw a gradient, weights, steps and a symmetric Hessian of up to five weights. Shrinks to one weight at 0."""
    n = draw(st.integers(1, 5))
    g, w = (np.array(draw(st.lists(sixteenths, min_size=n, max_size=n))) for _ in range(2))
    h = rng_for("dithered", n, draw(st.integers(0, 2**16))).integers(-8, 9, (n, n)) / 16
    return g, w, np.array(draw(st.lists(steps, min_size=n, max_size=n))), (h + h.T) / 2


@given(models(), levels)
def test_dithered_loss_radius__is_exceeded_with_probability_alpha_at_most(
    model: tuple[NDArray[Any], ...], alpha: float
) -> None:
    """F is a quadratic; sum_j |H_ij| covers its curvature."""
    g, w, s, h = model
    curvature = np.abs(h).sum(axis=1)
    radius = Fraction(dithered_loss_radius(g, s, alpha, curvature=curvature))
    linear = Fraction(dithered_loss_radius(g, s, alpha))
    exact_g, exact_w, exact_s = ([Fraction(x) for x in row.tolist()] for row in (g, w, s))
    exact_h = [[Fraction(x) for x in row] for row in h.tolist()]
    missed = missed_linear = Fraction(0)
    for p, e in outcomes(exact_w, exact_s):
        slope = sum((a * b for a, b in zip(exact_g, e, strict=True)), Fraction(0))
        bend = sum((e[i] * x * e[j] for i, row in enumerate(exact_h) for j, x in enumerate(row)), Fraction(0))
        missed += p * (slope + bend / 2 < -radius)
        missed_linear += p * (slope < -linear)
    assert missed <= Fraction(alpha)
    assert missed_linear <= Fraction(alpha)


@given(models())
def test_dithered_curvature__is_the_mean_shift_of_a_quadratic(model: tuple[NDArray[Any], ...]) -> None:
    g, w, s, h = model
    exact_w, exact_s = ([Fraction(x) for x in row.tolist()] for row in (w, s))
    shift = Fraction(0)
    for p, e in outcomes(exact_w, exact_s):
        pairs = ((i, j) for i in range(len(e)) for j in range(len(e)))
        shift += p * sum((e[i] * Fraction(float(h[i, j])) * e[j] for i, j in pairs), Fraction(0)) / 2
        shift += p * sum((Fraction(a) * b for a, b in zip(g.tolist(), e, strict=True)), Fraction(0))
    assert Fraction(dithered_curvature(np.diag(h).copy(), w, s)) == shift  # few bits: exact in float64
    most = float(np.maximum(np.diag(h), 0) @ s**2) / 8
    assert shift <= Fraction(most)


def test_dithered_loss_radius__by_hand() -> None:
    """Lengths 5 and 20 at alpha = e^-2; with curvature 2 at alpha = 2 e^-2: 5 + (2·(1+1)/4 + 2·sqrt 2)/2 for steps of 1."""
    assert dithered_loss_radius(np.array([3.0, 4.0]), 1.0, math.exp(-2)) == pytest.approx(5, rel=128 * U64)
    assert dithered_loss_radius(np.array([3.0, 4.0]), 4.0, math.exp(-2)) == pytest.approx(20, rel=128 * U64)
    curved = dithered_loss_radius(np.array([3.0, 4.0]), 1.0, 2 * math.exp(-2), curvature=2.0)
    assert curved == pytest.approx(5 + (1 + 2 * math.sqrt(2)) / 2, rel=128 * U64)
    assert dithered_loss_radius(np.zeros(2), 1.0, 0.1) <= 2.0**-1074


def test_dithered_loss_radius__needs_its_curvature() -> None:
    """F = -1000 e^2: half of the outcomes lie below the bound of the linear part, which is 0, by 250."""
    w = [Fraction(1, 2)]
    radius = dithered_loss_radius(np.zeros(1), 1.0, 0.1)
    assert all(-1000 * e[0] ** 2 < -radius for _, e in outcomes(w, [Fraction(1)]))
    covered = dithered_loss_radius(np.zeros(1), 1.0, 0.1, curvature=2000.0)
    assert all(-1000 * e[0] ** 2 >= -Fraction(covered) for _, e in outcomes(w, [Fraction(1)]))


def test_dithered_loss_radius__is_met_by_a_rounded_tensor() -> None:
    """300 weights, 20,000 dithers, alpha 0.05, weights that all lie on the grid or next to it."""
    rng = rng_for("dithered tensor")
    g, s = rng.normal(size=300), 0.5
    w = np.round(rng.normal(size=300) / s) * s + 0.02
    u = rng.uniform(size=(20_000, 300))
    e = s * np.floor(w / s + u) - w
    x = dithered_loss_radius(g, s, 0.05)
    assert (e @ g < -x).mean() <= 0.05 + hoeffding_radius(20_000)
    centred = s * np.floor(s / 2 / s + u) - s / 2  # weights halfway: there the radius is no more than twice too wide
    assert np.quantile(-(centred @ g), 0.95) > x / 2


one = np.ones(2)
REFUSED: list[tuple[str, Callable[[], Any]]] = [
    ("step must be positive", lambda: dithered_moments(one, 0.0)),
    ("w must be finite", lambda: dithered_moments(one * math.nan, 1.0)),
    ("delta must be finite", lambda: shared_dither_survivor(one, one * math.inf, 1.0, 0 * one)),
    ("dither must be in", lambda: shared_dither_survivor(one, one, 1.0, one)),
    ("dither must be in", lambda: shared_dither_survivor(one, one, 1.0, -one)),
    ("alpha must be in", lambda: dithered_loss_radius(one, 1.0, 1.0)),
    ("alpha must be in", lambda: dithered_loss_radius(one, 1.0, 0.0)),
    ("curvature must be finite", lambda: dithered_loss_radius(one, 1.0, 0.1, curvature=-1.0)),
    ("step must be positive", lambda: dithered_loss_radius(one, 0.0, 0.1)),
    ("vectors must have one length", lambda: dithered_curvature(one, np.ones(3), 1.0)),
]


@pytest.mark.parametrize(("message", "call"), REFUSED)
def test_dither__refuses(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=message):
        call()
