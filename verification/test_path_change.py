"""T13 along a path: the change of F by the gradients at its two ends, right where the gradient at the start is 0."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from unforgotten.theory.models.response import linear_response, mean_gradient, path_change, path_remainder_upper_bound
from unforgotten.verification.chance import rng_for
from unforgotten.verification.domains.networks import Network, gradients, loss, trained
from unforgotten.verification.oracles import U64
from unforgotten.verification.recording.tallies import record

small = st.integers(-12, 12)


@given(st.lists(st.tuples(small, small, small), min_size=1, max_size=5), small)
def test_path_change__is_exact_of_a_quadratic(rows: list[tuple[int, int, int]], cross: int) -> None:
    """F = sum a x + h x^2 / 2 + cross (sum x)^2 / 2, in integers: no rounding at all."""
    a, h, d = (np.array(column, np.float64) for column in zip(*rows, strict=True))
    y = np.arange(len(rows), dtype=np.float64)

    def f(x: NDArray[Any]) -> Fraction:
        return Fraction(float(a @ x)) + Fraction(float(h @ (x * x) + cross * x.sum() ** 2)) / 2

    def gradient(x: NDArray[Any]) -> NDArray[Any]:
        return a + h * x + cross * x.sum()

    assert Fraction(path_change(np.array([gradient(y + k * d / 2) for k in range(3)]), d)) == f(y + d) - f(y)


eighths = st.integers(-24, 24).map(lambda k: k / 8)


@given(eighths, eighths, st.integers(2, 5))
def test_path_remainder_upper_bound__bounds_a_curved_function(y: float, d: float, points: int) -> None:
    """F = sin: |F'''| <= 1. Attained by x^3 / 6, whose third derivative is 1."""
    places = y + d * np.arange(points)[:, None] / (points - 1)
    change = path_change(np.cos(places), np.array([d]))
    bound = path_remainder_upper_bound(1.0, np.array([d]), points)
    rounding = 8 * U64 * (points + 1) * (abs(d) + 1)
    assert abs(math.sin(y + d) - math.sin(y) - change) <= bound + rounding
    cubic = path_change(places**2 / 2, np.array([d]))
    gap = abs(((y + d) ** 3 - y**3) / 6 - cubic)
    room = 32 * points * U64 * (abs(y) + abs(d)) ** 3
    assert abs(gap - bound) <= room + 16 * U64 * bound
    if bound > 1e6 * room:
        record("path_remainder_upper_bound", y, d, points, ratio=min(1.0, gap / bound))


def flat(layers: tuple[NDArray[Any], ...]) -> NDArray[Any]:
    return np.concatenate([x.ravel() for x in layers])


def test_path_change__sees_the_loss_that_the_gradient_at_a_minimum_misses() -> None:
    """A network trained on the forget data until its gradient is small, then unlearned by ascent.

    The gradient at the start gives a small part of the change of the loss, the mean of five on the way nearly all.
    """
    rng = rng_for("path")
    layers = tuple(rng.standard_normal((b, a)) / np.sqrt(a) for a, b in ((6, 12), (12, 4)))
    start = Network(layers, rng.standard_normal((8, 6)), rng.integers(0, 4, 8))
    target = trained(start, steps=3000, rate=0.5)
    unlearned = target
    while loss(unlearned) < loss(target) + 0.25:
        unlearned = trained(unlearned, steps=1, rate=-0.2)
    delta = flat(unlearned.layers) - flat(target.layers)
    on_the_way = []
    for share in np.linspace(0, 1, 5).tolist():
        between = (a + share * (b - a) for a, b in zip(target.layers, unlearned.layers, strict=True))
        on_the_way.append(flat(gradients(target.with_layers(tuple(between)))))
    change = loss(unlearned) - loss(target)
    path = np.array(on_the_way)
    assert linear_response(path[0], delta, 1.0).mean < change / 16
    assert abs(path_change(path, delta) - change) < change / 16
    assert abs(path_change(path[[0, -1]], delta) - change) < change / 4
    assert path_change(path, delta) == linear_response(mean_gradient(path), delta, 1.0).mean


def test_path_change__refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="gradients must be of two points"):
        path_change(np.ones((1, 2)), np.ones(2))
    with pytest.raises(ValueError, match="gradients must be of two points"):
        path_change(np.ones(2), np.ones(2))
    with pytest.raises(ValueError, match="vectors must have one length"):
        path_change(np.ones((2, 2)), np.ones(3))
    with pytest.raises(ValueError, match="points must be at least 2"):
        path_remainder_upper_bound(1.0, np.ones(2), 1)
    for third in (-1.0, math.inf):
        with pytest.raises(ValueError, match="third must be finite"):
            path_remainder_upper_bound(third, np.ones(2))
    assert path_remainder_upper_bound(12.0, np.array([0.0, 3.0, 4.0])) == pytest.approx(125, rel=64 * U64, abs=0)
    assert path_remainder_upper_bound(1.0, np.zeros(3)) == 0
    assert path_remainder_upper_bound(0.0, np.ones(3)) == 0
    assert path_remainder_upper_bound(12.0, np.full(4, 2.0**-300)) == pytest.approx(8 * 2.0**-900, rel=64 * U64, abs=0)
