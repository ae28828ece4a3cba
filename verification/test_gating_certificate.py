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

from unforgotten.theory.models.gating_certificate import (
    effective_weights,
    gating_share_tail_upper_bound,
    gating_share_upper_bound,
    safe_step_lower_bound,
)
from unforgotten.theory.models.response import response_variance_upper_bound
from unforgotten.theory.models.tails import bernstein_radius, bernstein_tail_upper_bound
from unforgotten.verification.chance import hoeffding_radius, rng_for
from unforgotten.verification.domains.gating_outcomes import Pair, error_outcomes, gated_pairs
from unforgotten.verification.oracles import U64
from unforgotten.verification.recording.tallies import record

levels = st.sampled_from([0.5, 0.25, 0.05, 1e-3])
ROUNDINGS = 64 * U64  # four terms of some ten roundings each


def dot(a: list[Fraction], b: list[Fraction]) -> Fraction:
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


def tail(pair: Pair, exceeds: Callable[[list[Fraction]], bool]) -> Fraction:
    return sum((p for p, e in error_outcomes(pair) if exceeds(e)), Fraction(0))


@given(gated_pairs())
def test_effective_weights__are_the_exact_quotient_rounded_down(pair: Pair) -> None:
    g, d, s = pair.exact()
    variance = dot([a * a for a in g], [c * min(abs(b), c / 4) for b, c in zip(d, s, strict=True)])
    exact = dot(g, d) ** 2 / variance
    got = Fraction(effective_weights(*pair))
    magnified = dot([abs(x) for x in g], [abs(x) for x in d]) / abs(dot(g, d))  # terms of g·delta that cancel
    assert exact * (1 - 2 * Fraction(ROUNDINGS) * magnified) <= got <= exact


def test_effective_weights__are_the_expected_flips_of_like_weights() -> None:
    """4,096 weights that move by 2^-7 of a step: 32 codes change on average."""
    assert effective_weights(np.full(4096, -3.0), np.full(4096, 2.0**-7), 1.0) == pytest.approx(32, rel=5000 * U64)


@given(gated_pairs(), st.floats(0, 4))
def test_gating_share_tail_upper_bound__is_above_the_exact_tail(pair: Pair, share: float) -> None:
    g, d, _ = pair.exact()
    x = Fraction(share) * abs(dot(g, d))
    exact = tail(pair, lambda e: abs(dot(g, e)) >= x)
    bound = gating_share_tail_upper_bound(share, *pair)
    assert exact <= Fraction(bound)
    if 0 < bound < 1:
        record("gating_share_tail_upper_bound", *pair, share, ratio=float(exact / Fraction(bound)))


@given(gated_pairs(), st.floats(0.01, 4))
def test_gating_share_tail_upper_bound__is_the_formula_of_n_eff(pair: Pair, share: float) -> None:
    """2 exp(-n y^2 / (2 + 2 M y |g·delta| / (3 V))), from n_eff; exp magnifies the exponent's roundings by it."""
    effect = abs(float(pair.gradient @ pair.delta))
    variance = response_variance_upper_bound(*pair)
    ratio = float(np.abs(pair.gradient * pair.step).max()) * share * effect / variance
    exponent = effective_weights(*pair) * share**2 / (2 + 2 * ratio / 3)
    expected = min(1.0, 2 * math.exp(-exponent))
    got = gating_share_tail_upper_bound(share, *pair)
    magnified = float(np.abs(pair.gradient) @ np.abs(pair.delta)) / effect
    assert got == pytest.approx(expected, rel=4 * ROUNDINGS * magnified * (1 + exponent), abs=2.0**-1000)


def quadratic(pair: Pair, seed: int) -> tuple[list[list[Fraction]], NDArray[Any]]:
    """Return a symmetric H in sixteenths and c_i = sum_j |H_ij|, with which |e'He| <= sum c_i e_i^2."""
    n = len(pair.gradient)
    h = rng_for("hessian", n, seed).integers(-8, 9, (n, n)) / 16
    h = (h + h.T) / 2
    return [[Fraction(x) for x in row] for row in h.tolist()], np.abs(h).sum(axis=1)


@given(gated_pairs(), levels, st.integers(0, 2**16))
def test_gating_share_upper_bound__is_exceeded_with_probability_alpha_at_most(
    pair: Pair, alpha: float, seed: int
) -> None:
    """F is a quadratic with cross terms; the effect g·delta - delta'H delta / 2 that it has is given where it is not 0."""
    g, d, _ = pair.exact()
    h, curvature = quadratic(pair, seed)
    effect = dot(g, d) - dot(d, [dot(row, d) for row in h]) / 2
    if effect == 0:
        effect = Fraction(1)
    y = Fraction(gating_share_upper_bound(*pair, alpha, effect=float(effect), curvature=curvature))

    def exceeds(e: list[Fraction]) -> bool:
        return abs(dot(g, e) + dot(e, [dot(row, e) for row in h]) / 2) > y * abs(effect)

    assert tail(pair, exceeds) <= Fraction(alpha)
    most = max(abs(dot(g, e) + dot(e, [dot(row, e) for row in h]) / 2) for p, e in error_outcomes(pair) if p)
    record("gating_share_upper_bound", *pair, alpha, seed, ratio=float(min(most / abs(effect) / y, Fraction(1))))


@given(gated_pairs(), levels)
def test_gating_share_upper_bound__needs_its_curvature(pair: Pair, alpha: float) -> None:
    flat, curved = (gating_share_upper_bound(*pair, alpha, curvature=c) for c in (0.0, 0.5))
    assert flat < curved
    assert gating_share_upper_bound(*pair, alpha / 2) > flat


def test_gating_share_upper_bound__misses_without_the_curvature_it_was_promised() -> None:
    """F = 1000 e^2: every outcome exceeds the bound of the linear part."""
    pair = Pair(np.ones(1), np.array([0.5]), np.ones(1))
    y = gating_share_upper_bound(*pair, 0.5)
    assert tail(pair, lambda e: abs(e[0] + 1000 * e[0] ** 2) > Fraction(y) / 2) == 1
    y = gating_share_upper_bound(*pair, 0.5, curvature=2000.0)
    assert tail(pair, lambda e: abs(e[0] + 1000 * e[0] ** 2) > Fraction(y) / 2) == 0


def test_gating_share_upper_bound__needs_independent_places() -> None:
    """1,000 weights at one place: all codes change or none, and in one case of 100 ten times the effect is gone."""
    n, delta = 1000, 0.01
    y = gating_share_upper_bound(np.ones(n), np.full(n, delta), 1.0, 0.005)
    together = (1 - delta) / delta  # |D - delta| / delta where the codes change, with probability 1/100
    assert y < 2 < together


def test_gating_share_upper_bound__holds_on_a_real_grid() -> None:
    """300 weights, rint, 20,000 draws, alpha 0.05; the linear bound, as F is linear."""
    rng = rng_for("certificate")
    g, d, s = rng.normal(size=300), rng.normal(0, 0.05, 300), rng.uniform(0.5, 2, 300)
    y = gating_share_upper_bound(g, d, s, 0.05)
    w = rng.uniform(-0.5, 0.5, (20_000, 300)) * s
    moved = (np.rint((w + d) / s) - np.rint(w / s)) * s
    missed = np.abs(moved @ g - g @ d) > y * abs(g @ d)
    assert missed.mean() <= 0.05 + hoeffding_radius(20_000)
    # and it says something: 95 % of the draws need more than a third of it
    assert np.quantile(np.abs(moved @ g - g @ d), 0.95) > y * abs(g @ d) / 3


@given(gated_pairs(), st.floats(0.05, 2), levels, st.sampled_from([0.0, 0.25]))
def test_safe_step_lower_bound__is_the_last_step_that_holds(
    pair: Pair, share: float, alpha: float, curvature: float
) -> None:
    g, d, s = pair
    x = safe_step_lower_bound(g, d, share, alpha, curvature=curvature, profile=s)
    assert gating_share_upper_bound(g, d, x * s, alpha, curvature=curvature) <= share
    beyond = float(np.nextafter(x, np.inf))
    assert gating_share_upper_bound(g, d, beyond * s, alpha, curvature=curvature) > share
    for smaller in (0.5, 0.9):
        assert gating_share_upper_bound(g, d, smaller * x * s, alpha, curvature=curvature) <= share


def test_safe_step_lower_bound__at_its_ends() -> None:
    """No gradient and no curvature: any step. An effect beyond all proportion, and a share that is none."""
    zero, one = np.zeros(2), np.ones(2)
    assert safe_step_lower_bound(zero, one, 0.1, 0.1, effect=1.0) == math.inf
    assert safe_step_lower_bound(one, one, 2.0**-500, 0.1, effect=1.0) == 0
    assert 0 < safe_step_lower_bound(zero, one, 0.1, 0.1, effect=1.0, curvature=1.0) < math.inf


def test_gating_share_tail_upper_bound__is_bernsteins_by_hand() -> None:
    """g = delta = 1, step 8: V = 8, M = 8, effect 1, y = 2."""
    got = gating_share_tail_upper_bound(2.0, np.ones(1), np.ones(1), 8.0)
    assert got == pytest.approx(bernstein_tail_upper_bound(2.0, 8.0, 8.0), rel=ROUNDINGS)


def test_gating_share_upper_bound__adds_its_two_parts() -> None:
    """g = (1, 2), delta = 1/4, steps 1 and 2, c = 3, effect 3/4, each part at alpha / 2.

    V = 1/4 + 2, M = 4; sum c e^2 has mean 3/4 + 3/2 at most, variance 9/4 + 9·4·1/2 = 81/4, and terms up to 12.
    """
    linear = bernstein_radius(2.25, 4.0, 0.05)
    bent = (2.25 + bernstein_radius(20.25, 12.0, 0.05)) / 2
    got = gating_share_upper_bound(np.array([1.0, 2.0]), np.full(2, 0.25), np.array([1.0, 2.0]), 0.1, curvature=3.0)
    assert got == pytest.approx((linear + bent) / 0.75, rel=4 * ROUNDINGS)


one = np.ones(2)
REFUSED: list[tuple[str, Callable[[], Any]]] = [
    ("effect must be finite and not 0", lambda: effective_weights(one, np.array([1.0, -1.0]), 1.0)),
    ("effect must be finite and not 0", lambda: gating_share_upper_bound(one, one, 1.0, 0.1, effect=math.nan)),
    ("share must be finite and not negative", lambda: gating_share_tail_upper_bound(-1.0, one, one, 1.0)),
    ("share must be positive", lambda: safe_step_lower_bound(one, one, 0.0, 0.1)),
    ("curvature must be finite", lambda: gating_share_upper_bound(one, one, 1.0, 0.1, curvature=-1.0)),
    ("curvature must be one number", lambda: gating_share_upper_bound(one, one, 1.0, 0.1, curvature=np.ones(3))),
    ("alpha must be in", lambda: gating_share_upper_bound(one, one, 1.0, 0.0)),
    ("step must be positive", lambda: gating_share_upper_bound(one, one, 0.0, 0.1)),
    ("vectors must have one length", lambda: effective_weights(one, np.ones(3), 1.0)),
]


@pytest.mark.parametrize(("message", "call"), REFUSED)
def test_gating_certificate__refuses(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=message):
        call()
