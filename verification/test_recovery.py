from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given
from numpy.typing import NDArray

from unforgotten.theory.models.bootstrap import interval, resampled_means
from unforgotten.theory.models.recovery import LEVEL, RESAMPLES, Recovery, recovered_fraction
from unforgotten.verification.chance import hoeffding_radius, rng_for
from unforgotten.verification.oracles import U64

SEED = 7
# Thousandths: a gap of 1e-187, which Hypothesis finds in float64, overflows a variance, and is no metric's.
thousandths = st.integers(0, 1000).map(lambda n: n / 1000)
metrics = st.integers(2, 12).flatmap(lambda n: st.tuples(*[hnp.arrays(np.float64, n, elements=thousandths)] * 3))


def recovered(u: NDArray[Any], q: NDArray[Any], t: NDArray[Any]) -> Recovery:
    return recovered_fraction(u, q, t, seed=SEED)


def separated(n: int, *, rho: float, gap: float = 0.5, noise: float = 0.05) -> list[NDArray[Any]]:
    """u, q, t of n items, whose denominators are far from 0 and whose true fraction is rho."""
    rng = rng_for("separated", n, rho, gap)
    u = rng.uniform(0, 0.2, n)
    q, t = (u + size + noise * rng.normal(size=n) for size in (rho * gap, gap))
    return [u, q, t]


@given(metrics)
def test_recovered_fraction__is_the_exact_ratio(m: tuple[NDArray[Any], ...]) -> None:
    u, q, t = ([Fraction(float(x)) for x in row] for row in m)
    zero = Fraction(0)
    gained, gap = sum(q, zero) - sum(u, zero), sum(t, zero) - sum(u, zero)
    assume(gap != 0)
    # Sums of n differences of numbers up to 1: (n + 1) u n at most each, in the quotient; relative to the gap.
    error = Fraction(U64) * (len(u) + 2) * len(u)
    assume(abs(gap) > 2 * error)
    slack = (error * (1 + abs(gained / gap))) / (abs(gap) - error) + 4 * U64 * abs(gained / gap)
    assert abs(Fraction(recovered(*m).rho) - gained / gap) <= slack


@given(metrics)
def test_recovered_fraction__is_undefined_or_brackets_its_own_quantiles(m: tuple[NDArray[Any], ...]) -> None:
    got = recovered(*m)
    assert got.low <= got.high
    assert got.defined == math.isfinite(got.low)


@given(st.integers(3, 40), st.sampled_from([1.0, -1.0]))
def test_recovered_fraction__is_0_as_unlearned_and_1_as_target(n: int, sign: float) -> None:
    """Exactly, with no width: every resample has the same ratio. For metrics that fall with memory too."""
    u, _, t = (sign * x for x in separated(n, rho=0.5))
    assert recovered(u, u, t)[:3] == (0.0, 0.0, 0.0)
    assert recovered(u, t, t)[:3] == (1.0, 1.0, 1.0)


@given(st.integers(3, 40), st.integers(-8, 8), st.sampled_from([1.0, -1.0]))
def test_recovered_fraction__ignores_the_unit_of_the_metric(n: int, exponent: int, sign: float) -> None:
    rows = separated(n, rho=0.3)
    assert recovered(*(sign * math.ldexp(1.0, exponent) * x for x in rows)) == recovered(*rows)


@given(st.integers(3, 40), st.floats(-1, 1))
def test_recovered_fraction__ignores_the_origin_of_the_metric(n: int, origin: float) -> None:
    rows = separated(n, rho=0.3)
    plain, moved = recovered(*rows), recovered(*(x + origin for x in rows))
    # each item is rounded once at size 2; the gap is above 1/4; a ratio is below 4
    slack = 2 * U64 * 2 * (1 + 4) / 0.25 * 2
    assert abs(moved.rho - plain.rho) <= slack
    assert abs(moved.low - plain.low) <= slack
    assert abs(moved.high - plain.high) <= slack


def test_recovered_fraction__is_undefined_without_a_gap() -> None:
    u, q, _ = separated(50, rho=0.3)
    same = recovered(u, q, u)
    assert math.isnan(same.rho)
    assert same[1:] == (-math.inf, math.inf, math.inf, False)


def test_recovered_fraction__is_undefined_while_the_gap_is_not_separated_from_0() -> None:
    u = np.zeros(20)
    t = np.where(np.arange(20) % 2, 1.0, -0.9)
    got = recovered(u, np.full(20, 0.5), t)
    assert got.rho == pytest.approx(0.5 / 0.05, rel=32 * U64 * 20, abs=0)  # sums of 20 terms that cancel
    assert not got.defined


def test_recovered_fraction__repeats_with_the_seed() -> None:
    rows = separated(30, rho=0.4)
    assert recovered(*rows) == recovered(*rows)
    assert recovered_fraction(*rows, seed=SEED + 1) != recovered(*rows)


@given(st.integers(3, 30))
def test_recovered_fraction__cancels_the_difficulty_of_items(n: int) -> None:
    """Paired: a shift per item, the same in all three models, changes nothing beyond its rounding."""
    rows = separated(n, rho=0.4)
    difficulty = rng_for("difficulty", n).uniform(0, 2, n)
    plain, moved = recovered(*rows), recovered(*(x + difficulty for x in rows))
    slack = 4 * U64 * 2 * (1 + 4) / 0.25 * 2  # as for the origin, at size 4
    assert abs(moved.stderr - plain.stderr) <= slack * math.sqrt(RESAMPLES)


def test_recovered_fraction__has_the_width_of_the_delta_method() -> None:
    """A second method: var(rho) = var(q - u - rho (t - u)) / (n gap^2), to first order in noise / gap."""
    n = 400
    u, q, t = separated(n, rho=0.5)
    got = recovered(u, q, t)
    residual = (q - u) - got.rho * (t - u)
    first_order = residual.std() / math.sqrt(n) / (t - u).mean()
    # RESAMPLES draws know a spread to 1 / sqrt(2 RESAMPLES), 7 of those for a false alarm of 1e-10 (normal bound);
    # the second order is (stderr of the gap / gap)^2.
    slack = 7 / math.sqrt(2 * RESAMPLES) + ((t - u).std() / math.sqrt(n) / (t - u).mean()) ** 2
    assert abs(got.stderr / first_order - 1) <= slack


def test_recovered_fraction__of_one_seed_in_a_table_is_that_of_its_vector() -> None:
    rows = separated(20, rho=0.3)
    assert recovered(*(x[None] for x in rows)) == recovered(*rows)


def test_recovered_fraction__takes_the_mean_over_seeds() -> None:
    """Seeds with the fractions 0 and 1 and equal gaps: 1/2, exactly on sixteenths."""
    u, t = np.zeros((2, 4)), np.full((2, 4), 0.25)
    q = np.stack([u[0], t[1]])
    got = recovered(u, q, t)
    assert got.rho == 0.5
    assert (got.low, got.high) == (0.0, 1.0)


def test_recovered_fraction__is_wider_with_seeds_that_differ() -> None:
    """The same items: two seeds that agree are as sure as one; two that differ are not."""
    u, q, t = separated(100, rho=0.5)
    alike = recovered(*(np.stack([x, x]) for x in (u, q, t)))
    differ = recovered(np.stack([u, u]), np.stack([q - 0.1, q + 0.1]), np.stack([t, t]))
    assert abs(differ.rho - alike.rho) <= 64 * U64
    assert alike.high - alike.low < 0.2 * (differ.high - differ.low)


def test_resampled_means__have_the_variance_of_crossed_draws() -> None:
    """Var of the mean over seeds and items of a_s + b_i: var(a)/S + var(b)/n, the populations being the samples.

    RESAMPLES draws know a variance to sqrt(2 / RESAMPLES), 7 of those for a false alarm of 1e-10 (normal bound).
    """
    a, b = np.array([0.0, 1.0, 3.0]), rng_for("crossed").uniform(0, 4, 30)
    means = resampled_means(a[:, None] + b[None, :], seed=SEED)[0]
    expected = a.var() / 3 + b.var() / 30
    assert abs(means.var() / expected - 1) <= 7 * math.sqrt(2 / RESAMPLES)


def test_resampled_means__leave_whole_resamples_beyond_the_ends() -> None:
    """Fifty of them on each side of the interval at 95 %: an end is known to a seventh of its tail."""
    assert RESAMPLES * (100 - 95) / 200 == 50
    assert LEVEL == 0.95
    assert resampled_means(np.array([[1.0, 2.0]]), seed=SEED).shape == (1, RESAMPLES)


REPLICATES, ITEMS = 400, 60
TRUE_COVERAGE_AT_LEAST = 0.90  # of a nominal 0.95 percentile interval at 60 items: about 1 % below nominal


def coverage(*, bias: float) -> float:
    covered = []
    for i in range(REPLICATES):
        rng = rng_for("coverage", i)
        u, q, t = (mean + rng.normal(0, 0.2, ITEMS) for mean in (0.2, 0.4 + bias, 0.6))
        got = recovered_fraction(u, q, t, seed=i)
        covered.append(got.defined and got.low <= 0.5 <= got.high)
    return float(np.mean(covered))


def test_recovered_fraction__covers_the_truth() -> None:
    """Hoeffding, false alarm 1e-10. A statement about the interval, not exact: the bootstrap is asymptotic."""
    assert coverage(bias=0.0) >= TRUE_COVERAGE_AT_LEAST - hoeffding_radius(REPLICATES)


def test_recovered_fraction__coverage_has_power() -> None:
    """An interval off by a bias of 3 standard errors fails the same test."""
    assert coverage(bias=0.3 * 0.4) < TRUE_COVERAGE_AT_LEAST - hoeffding_radius(REPLICATES)
    assert 0.5 < LEVEL < 1


@pytest.mark.parametrize(
    "shapes", [((2,), (2,), (3,)), ((1,), (1,), (1,)), ((2, 2, 2),) * 3, ((0, 2),) * 3, ((3, 1),) * 3]
)
def test_recovered_fraction__refuses_other_shapes(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="items must be equal vectors"):
        recovered(*(np.ones(s) for s in shapes))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_recovered_fraction__refuses_metrics_that_are_not_finite(bad: float, place: int) -> None:
    rows = separated(5, rho=0.5)
    rows[place][1] = bad
    with pytest.raises(ValueError, match="finite"):
        recovered(*rows)


def test_interval__leaves_half_of_the_rest_on_each_side() -> None:
    """Of 0 … 1000 in any order the 95 % lie between 25 and 975."""
    low, high = interval(rng_for("interval").permutation(1001).astype(np.float64))
    assert low == pytest.approx(25, rel=1e-12)
    assert high == pytest.approx(975, rel=1e-12)
    assert LEVEL == 0.95
