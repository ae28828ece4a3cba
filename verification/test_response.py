from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import product
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from unforgotten.theory.models.curvature import curvature_remainder_upper_bound, gating_curvature
from unforgotten.theory.models.response import gating_variance, linear_response, response_variance_upper_bound
from unforgotten.theory.models.tails import bernstein_radius, bernstein_tail_upper_bound, empirical_bernstein_radius
from unforgotten.verification.chance import hoeffding_radius, rng_for
from unforgotten.verification.oracles import U64
from unforgotten.verification.recording.tallies import record


class Atoms(NamedTuple):
    """The law of D_i under U, exact: (value, probability) pairs of each weight."""

    pairs: tuple[tuple[tuple[Fraction, Fraction], ...], ...]

    def outcomes(self) -> Iterator[tuple[Fraction, tuple[Fraction, ...]]]:
        """(probability, D) of every joint outcome of independent weights."""
        for choice in product(*self.pairs):
            yield math.prod((p for _, p in choice), start=Fraction(1)), tuple(x for x, _ in choice)

    def expect(self, f: Callable[[tuple[Fraction, ...]], Any]) -> Any:
        return sum((p * f(d) for p, d in self.outcomes() if p), Fraction(0))


def gating_law(delta: list[Fraction], step: list[Fraction]) -> Atoms:
    """From the definition: a uniform position in a cell moves by whole steps."""
    rows = []
    for d, s in zip(delta, step, strict=True):
        sign = 1 if d >= 0 else -1
        whole = abs(d) // s
        phase = abs(d) / s - whole
        rows.append(((sign * whole * s, 1 - phase), (sign * (whole + 1) * s, phase)))
    return Atoms(tuple(rows))


class Case(NamedTuple):
    first: NDArray[Any]
    delta: NDArray[Any]
    step: NDArray[Any]

    def exact(self) -> list[list[Fraction]]:
        return [[Fraction(x) for x in row.tolist()] for row in self]


eighths = st.integers(-24, 24).map(lambda k: k / 8)
steps = st.sampled_from([0.25, 0.5, 1.0, 2.0])  # powers of two: |delta| / step is exact
cases = st.integers(1, 4).flatmap(
    lambda n: st.builds(
        Case,
        *(
            st.lists(e, min_size=n, max_size=n).map(lambda row: np.array(row, np.float64))
            for e in (eighths, eighths, steps)
        ),
    )
)


@given(cases)
def test_linear_response__is_the_mean_and_variance_of_all_outcomes(case: Case) -> None:
    g, d, s = case.exact()
    law = gating_law(d, s)

    def linear(x: tuple[Fraction, ...]) -> Fraction:
        return sum((a * b for a, b in zip(g, x, strict=True)), Fraction(0))

    mean = law.expect(linear)
    variance = law.expect(lambda x: linear(x) ** 2) - mean**2
    got = linear_response(*case)
    assert Fraction(got.mean) == mean  # sums of sixty-fourths: exact
    assert Fraction(got.variance) == variance  # of 2^-18 and larger, below 2^20: exact
    assert Fraction(got.largest) == max(abs(a * b) for a, b in zip(g, s, strict=True))


def test_linear_response__is_the_law_of_a_real_grid() -> None:
    """Uniform positions, rint, 200,000 draws: Hoeffding, false alarm 1e-10, for the mean; and for the variance's square."""
    g, d, s = np.array([1.0, -2.0, 0.5]), np.array([0.3, 0.05, -0.7]), np.array([0.5, 0.25, 1.0])
    draws = 200_000
    w = rng_for("real grid").uniform(-0.5, 0.5, (draws, 3)) * s
    moved = (np.rint((w + d) / s) - np.rint(w / s)) * s
    response = moved @ g
    want = linear_response(g, d, s)
    width = np.abs(g) @ s  # D_i takes two values a step apart
    assert abs(response.mean() - want.mean) <= width * hoeffding_radius(draws)
    squares = (response - want.mean) ** 2
    assert abs(squares.mean() - want.variance) <= width**2 * hoeffding_radius(draws)
    assert width**2 * hoeffding_radius(draws) < want.variance / 4  # the test can see a quarter of it


def test_linear_response__needs_independent_positions_for_its_variance() -> None:
    """Two equal weights at the *same* position: the mean holds, the variance doubles. `theory/README.md#t13` says both."""
    g, d = np.array([1.0, 1.0]), np.array([0.25, 0.25])
    want = linear_response(g, d, 1.0)
    one = gating_law([Fraction(1, 4)], [Fraction(1)])
    together = one.expect(lambda x: 4 * x[0] ** 2) - one.expect(lambda x: 2 * x[0]) ** 2
    assert Fraction(want.variance) * 2 == together
    assert one.expect(lambda x: 2 * x[0]) == Fraction(want.mean)


@given(cases)
def test_response_variance_upper_bound__is_above_the_exact_variance(case: Case) -> None:
    g, d, s = case.exact()
    bound = Fraction(response_variance_upper_bound(*case))
    assert Fraction(linear_response(*case).variance) <= bound
    terms = [a * a * c * min(abs(b), c / 4) for a, b, c in zip(g, d, s, strict=True)]
    total = sum(terms, Fraction(0))
    assert total <= bound <= total * (1 + 32 * Fraction(U64)) + Fraction(2) ** -1070  # up to 4 terms


def test_response_variance_upper_bound__covers_its_roundings() -> None:
    """One weight at a time: three products in float64 fall short of the exact one by up to three halves of an ulp."""
    rng = rng_for("three products")
    for g, d, s in zip(rng.normal(size=500), rng.uniform(0, 0.1, 500), rng.uniform(1, 2, 500), strict=True):
        bound = response_variance_upper_bound(np.array([g]), np.array([d]), float(s))
        assert Fraction(float(g)) ** 2 * Fraction(float(s)) * Fraction(float(d)) <= Fraction(bound)


def test_response_variance_upper_bound__is_near_the_truth_for_small_updates() -> None:
    g, d = np.ones(3), np.full(3, 2.0**-10)
    exact = linear_response(g, d, 1.0).variance
    assert exact / response_variance_upper_bound(g, d, 1.0) >= 1 - 2.0**-9


def tail(law: Atoms, g: list[Fraction], mean: Fraction, x: Fraction) -> Fraction:
    """P[|g·D - E g·D| >= x], exact."""
    response = ((p, sum((a * b for a, b in zip(g, d, strict=True)), Fraction(0))) for p, d in law.outcomes())
    return sum((p for p, r in response if abs(r - mean) >= x), Fraction(0))


@given(cases, st.integers(0, 40).map(lambda k: k / 4))
def test_bernstein_tail_upper_bound__is_above_the_exact_tail(case: Case, x: float) -> None:
    g, d, s = case.exact()
    law, r = gating_law(d, s), linear_response(*case)
    exact = tail(law, g, Fraction(r.mean), Fraction(x))
    bound = bernstein_tail_upper_bound(x, r.variance, r.largest)
    assert exact <= Fraction(bound)
    if 0 < bound < 1:  # 1 bounds every probability
        record("bernstein_tail_upper_bound", *case, x, ratio=float(exact / Fraction(bound)))
    upper = response_variance_upper_bound(*case)
    assert exact <= Fraction(bernstein_tail_upper_bound(x, upper, r.largest))


def test_bernstein_tail_upper_bound__by_hand() -> None:
    """x = 3, V = 1, M = 2: 2 exp(-4.5 / 3)."""
    assert bernstein_tail_upper_bound(3.0, 1.0, 2.0) == pytest.approx(2 * math.exp(-1.5), rel=64 * U64, abs=0)


def test_bernstein_tail_upper_bound__at_its_ends() -> None:
    assert bernstein_tail_upper_bound(0.0, 1.0, 1.0) == 1
    assert bernstein_tail_upper_bound(1e-6, 1.0, 1.0) == 1
    assert 0 <= bernstein_tail_upper_bound(1.0, 0.0, 0.0) <= 2.0**-1074


@given(st.floats(0, 1e3), st.floats(2.0**-10, 1e3), st.floats(1e-12, 0.999))
def test_bernstein_radius__inverts_the_tail(variance: float, largest: float, alpha: float) -> None:
    x = bernstein_radius(variance, largest, alpha)
    # the exponent L is off by 32 roundings at most, and exp magnifies by L
    slack = 64 * U64 * (1 + math.log(2 / alpha))
    assert bernstein_tail_upper_bound(x, variance, largest) <= alpha * (1 + slack)
    # below x by one part in 1000 the exponent falls by at least one part in 1000
    less = bernstein_tail_upper_bound(x * 0.999, variance, largest)
    assert less >= min(1.0, alpha * math.exp(1e-3 * math.log(2 / alpha)) * (1 - slack))


def test_bernstein_radius__gating_noise_averages_out() -> None:
    """n like weights whose gradient is along delta: the radius over the mean falls as 1 / sqrt n."""
    shares = []
    for n in (100, 10_000, 1_000_000):
        r = linear_response(np.ones(n), np.full(n, 2.0**-7), 1.0)
        shares.append(bernstein_radius(r.variance, r.largest, 1e-6) / r.mean)
    assert shares[0] > 10 * shares[1] * 0.5
    assert shares[2] < 0.5 < shares[0]
    assert 8 < shares[1] / shares[2] < 16


class Curve(NamedTuple):
    """A function of n weights, its Hessian's diagonal at 0, and a bound of |third directional derivative|."""

    value: Callable[[NDArray[Any]], float]
    hessian_diagonal: Callable[[int], NDArray[Any]]
    third: Callable[[int], float]


def ramp(n: int) -> NDArray[Any]:
    return np.arange(1.0, n + 1) / n


CURVES: dict[str, Curve] = {
    # exp(a·x) near 0, |a|^3 e^|…| on |a·x| <= 1
    "exp": Curve(
        lambda x: math.exp(ramp(len(x)) @ x),
        lambda n: ramp(n) ** 2,
        lambda n: float(np.linalg.norm(ramp(n))) ** 3 * math.e,
    ),
    # sin(a·x + 1)
    "sin": Curve(
        lambda x: math.sin(ramp(len(x)) @ x + 1),
        lambda n: -math.sin(1) * ramp(n) ** 2,
        lambda n: float(np.linalg.norm(ramp(n))) ** 3,
    ),
    # log sum exp: third cumulant of a direction of spread at most 2 |u| <= 2, so at most 2^3
    "log sum exp": Curve(
        lambda x: math.log(np.exp(np.append(x, 0.0)).sum()),
        lambda n: np.full(n, 1 / (n + 1) - 1 / (n + 1) ** 2),
        lambda n: 8.0,
    ),
    # a quadratic with cross terms: no remainder at all
    "quadratic": Curve(lambda x: float(x.sum() ** 2 + x @ x), lambda n: np.full(n, 4.0), lambda n: 0.0),
}


def mean_shift(curve: Curve, delta: NDArray[Any], step: NDArray[Any]) -> tuple[float, float]:
    """E F(D) - F(delta) over all outcomes, and how far its rounding can be off."""
    law = gating_law([Fraction(x) for x in delta.tolist()], [Fraction(x) for x in step.tolist()])
    terms = [(float(p), curve.value(np.array([float(x) for x in d]))) for p, d in law.outcomes()]
    # each value is below 16 and off by 16 roundings; so are its weight and the difference
    return math.fsum(p * v for p, v in terms) - curve.value(delta), 64 * U64 * 16


small = st.integers(-8, 8).map(lambda k: k / 64)


@pytest.mark.parametrize("name", sorted(CURVES))
@given(n=st.integers(1, 4), data=st.data())
def test_gating_curvature__is_the_shift_of_the_mean_but_for_the_remainder(
    name: str, n: int, data: st.DataObject
) -> None:
    curve = CURVES[name]
    delta = np.array(data.draw(st.lists(small, min_size=n, max_size=n)))
    step = np.array(data.draw(st.lists(st.sampled_from([0.0625, 0.125, 0.25]), min_size=n, max_size=n)))
    shift, rounding = mean_shift(curve, delta, step)
    got = gating_curvature(curve.hessian_diagonal(n), delta, step)
    remainder = curvature_remainder_upper_bound(curve.third(n), delta, step)
    assert abs(shift - got) <= remainder + rounding


@pytest.mark.parametrize("name", ["exp", "sin", "log sum exp"])
def test_gating_curvature__remainder_is_of_third_order_in_the_scale(name: str) -> None:
    """Halving delta and the step divides the term by 4 and the remainder by 8: to first order, so by 8 within 20 %.

    Rates between 6.4 and 9.6 exclude orders 2 and 4. The range of h keeps the remainder above its rounding.
    """
    curve = CURVES[name]
    delta, step = np.array([0.3, -0.1, 0.2]), np.array([0.5, 0.25, 1.0])
    rest = []
    for h in (2.0**-4, 2.0**-5, 2.0**-6):
        shift, rounding = mean_shift(curve, h * delta, h * step)
        rest.append(abs(shift - gating_curvature(curve.hessian_diagonal(3), h * delta, h * step)))
        assert rounding < 0.01 * rest[-1]
    for a, b in ((rest[0], rest[1]), (rest[1], rest[2])):
        assert 6.4 < a / b < 9.6


@pytest.mark.parametrize("small", [1e-60, 1e-100])
def test_curvature_remainder_upper_bound__takes_steps_of_any_ratio(small: float) -> None:
    """One step of 1 and one so small that its fourth power in the other's unit underflows, or in its own overflows.

    The small step's part is nothing beside the other's, of which half a step gives E|D|^2 = E|D|^4 = 1/2.
    """
    bound = curvature_remainder_upper_bound(6.0, np.array([0.5, 0.0]), np.array([1.0, small]))
    assert bound == pytest.approx(0.5 + 0.125, rel=1000 * U64)


@pytest.mark.parametrize("name", ["exp", "sin"])
def test_gating_curvature__is_no_better_for_a_smaller_update(name: str) -> None:
    """delta -> 0 at one step: term and remainder both fall as delta, so their quotient stays: an expansion in the step."""
    curve = CURVES[name]
    step = np.array([0.5, 0.25])
    shares = []
    for h in (2.0**-4, 2.0**-8):
        delta = h * np.array([0.3, 0.2])
        shift, _ = mean_shift(curve, delta, step)
        term = gating_curvature(curve.hessian_diagonal(2), delta, step)
        shares.append(abs(shift - term) / abs(term))
    assert shares[1] > 0.5 * shares[0]


@given(cases)
def test_curvature_remainder_upper_bound__is_above_the_exact_third_moment(case: Case) -> None:
    """K = 6: E|D|^3 + |delta|^3 over all outcomes; equality for one weight below one step."""
    _, d, s = case.exact()
    law = gating_law(d, s)
    third = math.fsum(float(p) * math.sqrt(sum(x * x for x in outcome)) ** 3 for p, outcome in law.outcomes())
    exact = third + math.sqrt(sum(x * x for x in d)) ** 3
    got = curvature_remainder_upper_bound(6.0, case.delta, case.step)
    slack = 64 * U64 * exact  # the oracle's own roots and sum
    assert exact <= got + slack
    if len(d) == 1 and abs(d[0]) < s[0]:
        assert got <= exact * (1 + 256 * U64) + 2.0**-1074
    if got:
        record("curvature_remainder_upper_bound", case.delta, case.step, ratio=exact / (got + slack))


@given(cases)
def test_gating_variance__mirrors_and_vanishes_on_whole_steps(case: Case) -> None:
    assert (gating_variance(case.delta, case.step) == gating_variance(-case.delta, case.step)).all()
    assert (gating_variance(3 * case.step, case.step) == 0).all()


ok = np.ones(2)
REFUSED: list[tuple[str, Callable[[], Any]]] = [
    ("vectors must have one length", lambda: linear_response(ok, np.ones(3), 1.0)),
    ("vectors must have one length", lambda: linear_response(np.ones((1, 2)), np.ones((1, 2)), 1.0)),
    ("vectors must have one length", lambda: linear_response(np.array([]), np.array([]), 1.0)),
    ("vectors must have one length", lambda: response_variance_upper_bound(ok, ok, np.ones(3))),
    ("gradient and delta must be finite", lambda: linear_response(ok * np.nan, ok, 1.0)),
    ("gradient and delta must be finite", lambda: gating_curvature(ok, ok * np.inf, 1.0)),
    ("step must be positive", lambda: linear_response(ok, ok, 0.0)),
    ("step must be positive", lambda: linear_response(ok, ok, np.array([1.0, np.inf]))),
    ("x must be finite", lambda: bernstein_tail_upper_bound(-1.0, 1.0, 1.0)),
    ("variance must be finite", lambda: bernstein_radius(np.nan, 1.0, 0.1)),
    ("alpha must be in", lambda: bernstein_radius(1.0, 1.0, 1.0)),
    ("alpha must be in", lambda: empirical_bernstein_radius(ok, 0.0, 1.0, 0.0)),
    ("samples must be a vector", lambda: empirical_bernstein_radius(np.ones(1), 0.0, 1.0, 0.1)),
    ("samples must be in", lambda: empirical_bernstein_radius(2 * ok, 0.0, 1.0, 0.1)),
    ("samples must be in", lambda: empirical_bernstein_radius(ok, 0.0, np.inf, 0.1)),
    ("third must be finite", lambda: curvature_remainder_upper_bound(-1.0, ok, 1.0)),
]


def test_bernstein_radius__does_not_underflow() -> None:
    """Powers of two scale exactly: 1e-200 of everything, whose squares are 0 in doubles."""
    small = 2.0**-660
    assert bernstein_radius(0.0, small, 0.1) == small * bernstein_radius(0.0, 1.0, 0.1)
    x = np.array([0.0, 1.0, 0.25])
    assert empirical_bernstein_radius(small * x, 0.0, small, 0.1) == small * empirical_bernstein_radius(
        x, 0.0, 1.0, 0.1
    )
    assert empirical_bernstein_radius(0 * x, 0.0, 0.0, 0.1) <= 2.0**-1074
    ones = np.ones(2)
    third = curvature_remainder_upper_bound(1.0, ones, 4.0)
    tiny = curvature_remainder_upper_bound(1.0, ones * 2.0**-300, 2.0**-298)
    assert abs(tiny / third * 2.0**900 - 1) <= 4 * U64


@pytest.mark.parametrize(("message", "call"), REFUSED)
def test_response__refuses(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=message):
        call()
