from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from unforgotten.theory.formats.names import Format, format_named
from unforgotten.theory.models.functional_gain import (
    Returned,
    functional_gain,
    second_order_share_returned,
    share_returned,
)
from unforgotten.verification.chance import rng_for
from unforgotten.verification.domains.gating_outcomes import Pair, error_outcomes, gated_pairs
from unforgotten.verification.domains.networks import (
    Network,
    change,
    gradients,
    loss,
    moved,
    networks,
    quantized,
    trained,
)
from unforgotten.verification.oracles import U64

seeds = st.integers(0, 2**16)
formats = st.sampled_from(("int4-row", "int2-row", "int8-row", "nf4-b64", "fp4-b64", "int4-row-asym")).map(format_named)
Vector = NDArray[Any]


def survivors(pair: Pair) -> list[Vector]:
    """Return every D that gating can make of an update."""
    return [np.array([float(x) for x in e]) + pair.delta for p, e in error_outcomes(pair) if p]


@given(gated_pairs())
def test_functional_gain__is_the_exact_quotient_and_1_on_average(pair: Pair) -> None:
    g, d, _ = pair.exact()
    effect = sum((a * b for a, b in zip(g, d, strict=True)), Fraction(0))
    mean = Fraction(0)
    for p, e in error_outcomes(pair):
        kept = [a + b for a, b in zip(d, e, strict=True)]
        exact = sum((a * b for a, b in zip(g, kept, strict=True)), Fraction(0)) / effect
        got = Fraction(functional_gain(pair.gradient, pair.delta, np.array([float(x) for x in kept])))
        assert abs(got - exact) <= 4 * Fraction(U64) * abs(exact)  # eighths and quarters: exact sums, one quotient
        mean += p * exact
    assert mean == 1  # under U, as T7's gain


@given(gated_pairs())
def test_functional_gain__is_the_gain_for_a_gradient_along_the_update(pair: Pair) -> None:
    for kept in survivors(pair):
        gain = float(kept @ pair.delta / (pair.delta @ pair.delta))
        assert abs(functional_gain(pair.delta, pair.delta, kept) - gain) <= 64 * U64 * (1 + abs(gain)) * 100


def test_functional_gain__and_the_gain_can_differ_in_what_they_say() -> None:
    """One weight of large gradient passes twice, nine pass nothing: L2 gain 0.2, functional gain 1.1, and F grows."""
    gradient, delta = np.append(10.0, np.full(9, 1.0)), np.ones(10)
    kept = np.append(2.0, np.zeros(9))
    assert kept @ delta / (delta @ delta) == pytest.approx(0.2)
    assert functional_gain(gradient, delta, kept) == pytest.approx(20 / 19)
    assert share_returned(gradient, delta, kept, curvature=0.0).sign == -1


def bent(pair: Pair, seed: int) -> tuple[Callable[[Vector], float], Vector, Vector]:
    """Return F(w' + x) - F(w') of a quadratic in exact sixteenths, its Hessian, and a curvature that covers it."""
    n = len(pair.gradient)
    h = rng_for("bent", n, seed).integers(-8, 9, (n, n)) / 16
    h = (h + h.T) / 2
    return lambda x: float(pair.gradient @ x + x @ h @ x / 2), h, np.abs(h).sum(axis=1)


@given(gated_pairs(), seeds)
def test_share_returned__holds_what_comes_back_of_a_quadratic(pair: Pair, seed: int) -> None:
    """All numbers are multiples of 2^-11 below 2^12: F is exact in float64."""
    value, h, curvature = bent(pair, seed)
    for kept in survivors(pair):
        e = kept - pair.delta
        exact = -Fraction(value(e)) / Fraction(float(pair.gradient @ pair.delta))
        got = share_returned(pair.gradient, pair.delta, kept, curvature=curvature)
        assert Fraction(got.low) <= exact <= Fraction(got.high)
        assert got.low <= got.share <= got.high
        second = second_order_share_returned(pair.gradient, pair.delta, kept, bend=float(e @ h @ e), third=0.0)
        assert Fraction(second.low) <= exact <= Fraction(second.high)
        assert second.high - second.low <= 256 * U64 * (1 + abs(second.share) + abs(got.share)) * 1e3
        if got.sign:
            assert got.sign == (1 if exact > 0 else -1)
            gamma = functional_gain(pair.gradient, pair.delta, kept)
            assert got.sign == (1 if gamma < 1 else -1)


@given(gated_pairs())
def test_second_order_share_returned__holds_for_an_exponential(pair: Pair) -> None:
    """F(w' + x) = exp(a·x) - 1, gradient a: every derivative along a unit vector is at most |a|^k e^|a·x|."""
    scale = 2.0**-6
    a = pair.gradient * scale
    for kept in survivors(pair):
        e = kept - pair.delta
        along = float(a @ e)
        exact = -math.expm1(along) / float(a @ pair.delta)
        third = float(np.linalg.norm(a)) ** 3 * math.exp(abs(along))
        got = second_order_share_returned(a, pair.delta, kept, bend=along**2, third=third)
        slack = 64 * U64 * (1 + abs(exact) * (1 + 1 / max(abs(along), 2.0**-20)))
        assert got.low - slack <= exact <= got.high + slack
        flat = second_order_share_returned(a, pair.delta, kept, bend=along**2, third=0.0)
        if abs(along) > 0.05:  # the third order is then 2^-16 of the first and well above rounding
            assert not flat.low - slack <= exact <= flat.high + slack


def flat_of(layers: tuple[Vector, ...]) -> Vector:
    return np.concatenate([w.ravel() for w in layers])


@given(networks(), formats, st.integers(1, 5))
def test_functional_gain__has_the_sign_of_what_comes_back_in_a_network(net: Network, fmt: Format, steps: int) -> None:
    """Where |1 - Gamma| |g·delta| exceeds half the largest |second derivative| on the way.

    The largest is that of 33 places, with a sixteenth on top for what lies between them, and 2^-20 for the rounding of a
    difference of slopes.
    """
    unlearned = trained(net, steps=steps, rate=-0.1)
    delta = flat_of(change(unlearned, net))
    kept = change(quantized(unlearned, fmt), quantized(net, fmt))
    g = flat_of(gradients(unlearned))
    if abs(g @ delta) <= 64 * U64 * float(np.abs(g) @ np.abs(delta)) * len(g):
        return
    e = change(moved(net, kept), unlearned)

    def along(x: float) -> float:
        return loss(moved(unlearned, tuple(x * part for part in e)))

    def slope(x: float) -> float:
        return float(flat_of(gradients(moved(unlearned, tuple(x * part for part in e)))) @ flat_of(e))

    h = 2.0**-12
    bends = [abs(slope(x + h) - slope(x - h)) / (2 * h) for x in np.linspace(0, 1, 33)]
    most = max(bends) * 17 / 16 + 2.0**-20
    gamma = functional_gain(g, delta, flat_of(kept))
    lost = (1 - gamma) * float(g @ delta)
    came_back = along(0.0) - along(1.0)
    assert abs(came_back - lost) <= most / 2 + 64 * U64 * (1 + abs(along(0.0)) + abs(lost)) * 1e3
    if abs(lost) > most / 2 + 1e-9:
        assert math.copysign(1, came_back) == math.copysign(1, lost)


def test_share_returned__is_certain_or_says_that_it_is_not() -> None:
    assert Returned(0.1, -0.1, 0.3).sign == 0
    assert Returned(0.1, 0.05, 0.3).sign == 1
    assert Returned(-0.1, -0.3, -0.05).sign == -1
    assert Returned(0.1, 0.0, 0.3).sign == Returned(-0.1, -0.3, 0.0).sign == 0
    wide = share_returned(np.ones(1), np.ones(1), np.zeros(1), curvature=10.0)
    assert (wide.share, wide.sign) == (1.0, 0)
    assert wide.low == pytest.approx(-4.0)
    assert wide.high == pytest.approx(6.0)


one = np.ones(2)
REFUSED: list[tuple[str, Callable[[], Any]]] = [
    ("g·delta must not be 0", lambda: functional_gain(one, np.array([1.0, -1.0]), one)),
    ("g·delta must not be 0", lambda: share_returned(0 * one, one, one, curvature=1.0)),
    ("survivor must be of shape", lambda: functional_gain(one, one, np.ones(3))),
    ("survivor must be finite", lambda: functional_gain(one, one, one * math.nan)),
    ("gradient and delta must be finite", lambda: functional_gain(one, one * math.inf, one)),
    ("vectors must have one length", lambda: functional_gain(one, np.ones(3), one)),
    ("curvature must be finite", lambda: share_returned(one, one, one, curvature=-1.0)),
    ("bend must be finite", lambda: second_order_share_returned(one, one, one, bend=math.nan, third=0.0)),
    ("third must be finite", lambda: second_order_share_returned(one, one, one, bend=0.0, third=-1.0)),
]


@pytest.mark.parametrize(("message", "call"), REFUSED)
def test_functional_gain__refuses(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=message):
        call()
