"""T16 for few items: Fieller's interval against the t-test that it inverts, and its rates by simulation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray
from scipy import stats

from unforgotten.theory.models.bootstrap import checked, ratio_of_means
from unforgotten.theory.models.fieller import (
    LEAST_EFFECTIVE,
    RecoveryInterval,
    effective_items,
    fieller_interval,
    recovery_interval,
)
from unforgotten.verification.chance import bernstein_radius, rng_for

SAMPLES = 4_000
NOMINAL = 0.05
TWO_POINTS = 0.02
LINEAR = 1e-8  # of a p-value at an end: a root of a quadratic, good to some 1e-12, through a t density below 1


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=20))
def test_effective_items__is_kishs(removed: list[int]) -> None:
    got = Fraction(effective_items(np.array(removed, np.float64)))
    squares = sum(b * b for b in removed)
    want = Fraction(sum(removed) ** 2, squares) if squares else Fraction(0)
    # each quotient by the largest is rounded: so the sum, relative to that of the magnitudes
    whole = Fraction(sum(map(abs, removed)) ** 2, squares) if squares else Fraction(0)
    assert abs(got - want) <= whole * Fraction(16, 2**52)
    assert 0 <= got <= len(removed)


def test_effective_items__counts_the_items_that_hold_it_all() -> None:
    assert effective_items(np.repeat([3.0, 0.0], [5, 45])) == 5
    assert effective_items(np.full(7, -(2.0**-700))) == 7
    assert effective_items(np.zeros(3)) == 0
    for bad in (np.array([]), np.ones((2, 2)), np.array([math.nan])):
        with pytest.raises(ValueError, match="removed must be a vector"):
            effective_items(bad)


def items(seed: int, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """ROUGE-like: what was removed is far from 0, and about a third of it comes back."""
    rng = rng_for("items", seed, n)
    removed = rng.uniform(40, 80, n)
    return 0.3 * removed + rng.normal(0, 10, n), removed


@given(st.integers(0, 2**32), st.integers(3, 30))
def test_fieller_interval__without_pseudo_items_inverts_a_t_test(seed: int, n: int) -> None:
    """scipy's own test of the mean of a - rho b; with equal b the degrees of freedom are n - 1."""
    gained, _ = items(seed, n)
    removed = np.full(n, 50.0)
    got = fieller_interval(gained, removed, pseudo=0.0)
    for end in (got.low, got.high):
        p: Any = stats.ttest_1samp(gained - end * removed, 0.0)[1]
        assert p == pytest.approx(NOMINAL, rel=0, abs=LINEAR)
    assert got.low <= got.rho <= got.high
    assert got.effective == n


@given(st.integers(0, 2**32), st.integers(4, 30), st.integers(1, 3))
def test_fieller_interval__is_that_of_a_sample_with_pseudo_items(seed: int, n: int, k: int) -> None:
    """The statistic at the ends, from the items and 2 k more as they stand; t by Kish's n."""
    gained, removed = items(seed, n)
    got = fieller_interval(gained, removed, pseudo=float(k))
    c = float((removed**2).sum() / removed.sum())
    a, b = np.concatenate([gained, [c] * k, [0.0] * k]), np.concatenate([removed, [c] * 2 * k])
    t = stats.t.ppf(0.975, got.effective - 1 + 2 * k)
    ends = []
    for rho in (got.low, got.high):
        r = a - rho * b
        ends.append(abs(r.mean()) / r.std(ddof=1) * math.sqrt(len(r)))
    tested = [x for x, rho in zip(ends, (got.low, got.high), strict=True) if rho != got.rho]
    assert tested == pytest.approx([t] * len(tested), rel=LINEAR, abs=0)
    assert len(tested) >= 1


@given(st.integers(0, 2**32), st.integers(3, 20), st.sampled_from([-4.0, -1.0, 2.0**-400, 2.0**300]))
def test_fieller_interval__ignores_the_unit_and_direction_of_the_metric(seed: int, n: int, unit: float) -> None:
    gained, removed = items(seed, n)
    assert fieller_interval(gained * unit, removed * unit) == fieller_interval(gained, removed)


def test_fieller_interval__is_narrower_without_pseudo_items_and_with_more_items() -> None:
    few, many = (fieller_interval(*items(1, n)) for n in (10, 1000))
    bare = fieller_interval(*items(1, 10), pseudo=0.0)
    assert many.high - many.low < few.high - few.low
    assert bare.high - bare.low < few.high - few.low


def test_fieller_interval__is_no_point_where_nothing_or_all_came_back() -> None:
    """Of 16 items none: up to a fifth may yet come back of the next."""
    none = fieller_interval(np.zeros(16), np.ones(16))
    assert none.rho == 0
    assert 0.15 < none.high < 1 / 3
    whole = fieller_interval(np.ones(16), np.ones(16))
    assert whole.rho == 1
    assert whole.low == pytest.approx(1 - none.high, rel=1e-12)
    assert fieller_interval(np.zeros(16), np.ones(16), pseudo=0.0)[:3] == (0.0, 0.0, 0.0)


def test_recovery_interval__takes_differences_of_items() -> None:
    gained, removed = np.array([8.0, 0.0, 16.0, 4.0]), np.array([32.0, 16.0, 32.0, 8.0])
    u = np.array([4.0, 2.0, 1.0, 0.0])
    assert recovery_interval(u, u + gained, u + removed) == fieller_interval(gained, removed)
    with pytest.raises(ValueError, match="unlearned must be a vector"):
        recovery_interval(np.ones((2, 3)), np.ones((2, 3)), np.ones((2, 3)))


def test_fieller_interval__refuses_what_it_cannot_use() -> None:
    with pytest.raises(ValueError, match="items must be equal vectors"):
        fieller_interval(np.ones(1), np.ones(1))
    with pytest.raises(ValueError, match="finite"):
        fieller_interval(np.ones(3), np.array([1.0, math.inf, 1.0]))
    for bad in (-1.0, math.nan):
        with pytest.raises(ValueError, match="pseudo must be finite"):
            fieller_interval(np.ones(3), np.ones(3), pseudo=bad)


def test_fieller_interval__is_undefined_without_a_removal() -> None:
    got = fieller_interval(np.ones(6), np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]))
    assert math.isnan(got.rho)
    assert got[1:] == (-math.inf, math.inf, 0.0, False)
    assert not fieller_interval(np.ones(4), np.zeros(4)).defined
    weak = fieller_interval(np.ones(4), np.array([1.0, 1.0, 1.0, -1.0]))
    assert weak.rho == 2
    assert not weak.defined


Sampler = Callable[[np.random.Generator, float], tuple[NDArray[Any], NDArray[Any]]]


def rouge(rng: np.random.Generator, rho: float, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """All items return about as much, with noise of the metric."""
    removed = rng.uniform(45, 85, n)
    return rng.normal(rho, 0.15, n) * removed + rng.normal(0, 3, n), removed


def mixed(rng: np.random.Generator, rho: float, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """ROUGE whose items return whole or not at all, with noise of the metric."""
    removed = rng.uniform(45, 85, n)
    return (rng.random(n) < rho) * removed + rng.normal(0, 3, n), removed


def binary(rng: np.random.Generator, rho: float, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
    return (rng.random(n) < rho).astype(np.float64), np.ones(n)


def sparse(rng: np.random.Generator, rho: float, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """One item in five holds what was removed, and returns it whole or not at all."""
    removed = np.where(rng.random(n) < 0.2, rng.uniform(50, 80, n), 0.0)
    return (rng.random(n) < rho) * removed, removed


CASES: Mapping[str, tuple[Callable[..., tuple[NDArray[Any], NDArray[Any]]], int]] = {
    "rouge, 9": (rouge, 9),
    "rouge, 32": (rouge, 32),
    "mixed, 9": (mixed, 9),
    "binary, 8": (binary, 8),
    "binary, 32": (binary, 32),
    "binary, 100": (binary, 100),
    "sparse, 60": (sparse, 60),
}


def missed(case: str, rho: float, interval: Callable[..., Any]) -> NDArray[Any]:
    """Of the samples of at least LEAST_EFFECTIVE items of which rho is defined: whether the interval misses rho."""
    draw, n = CASES[case]
    rng = rng_for("missed", case, rho)
    out = []
    for _ in range(SAMPLES):
        a, b = draw(rng, rho, n)
        if effective_items(b) < LEAST_EFFECTIVE:
            continue
        got = interval(a, b)
        if got.defined:
            out.append(not got.low <= rho <= got.high)
    return np.array(out, np.float64)


@pytest.mark.parametrize("rho", [0.0, 0.1, 1 / 3, 0.8])
@pytest.mark.parametrize("case", sorted(CASES))
def test_fieller_interval__misses_within_two_points_of_nominal(case: str, rho: float) -> None:
    """From above. Bernstein, false alarm 1e-10; a miss of 13 % would be seen."""
    miss = missed(case, rho, fieller_interval)
    assert len(miss) > SAMPLES / 2
    radius = bernstein_radius(float(miss.var(ddof=1)), len(miss))
    assert miss.mean() <= NOMINAL + TWO_POINTS + radius
    assert radius < 0.06


@pytest.mark.parametrize("rho", [0.1, 0.5])
@pytest.mark.parametrize("case", ["rouge, 9", "rouge, 32"])
def test_fieller_interval__without_pseudo_items_is_nominal_for_even_returns(case: str, rho: float) -> None:
    """From both sides, where the residuals are near normal."""
    miss = missed(case, rho, lambda a, b: fieller_interval(a, b, pseudo=0.0))
    radius = bernstein_radius(float(miss.var(ddof=1)), len(miss))
    assert abs(miss.mean() - NOMINAL) <= TWO_POINTS + radius


def test_fieller_interval__is_needed() -> None:
    """Of 8 items that come back all or nothing at rho = 0.1, the bootstrap and the bare interval miss above a third."""

    def percentile(a: NDArray[Any], b: NDArray[Any]) -> Any:
        return ratio_of_means(*checked(a, b), seed=0)

    def bare(a: NDArray[Any], b: NDArray[Any]) -> RecoveryInterval:
        return fieller_interval(a, b, pseudo=0.0)

    draw, n = CASES["binary, 8"]
    rng = rng_for("needed")
    samples = [draw(rng, 0.1, n) for _ in range(400)]
    for interval in (percentile, bare):
        found = [interval(a, b) for a, b in samples]
        assert np.mean([not r.low <= 0.1 <= r.high for r in found]) > 1 / 3


@pytest.mark.parametrize("n", [8, 16, 32])
@pytest.mark.parametrize("kind", ["normal", "binary", "sparse"])
def test_fieller_interval__is_defined_in_5_percent_of_nothing(kind: str, n: int) -> None:
    """Nothing was removed in the mean. From above: few items of which most hold nothing are defined less often."""
    rng = rng_for("nothing", kind, n)
    draws: Mapping[str, Callable[[], NDArray[Any]]] = {
        "normal": lambda: rng.normal(size=n),
        "binary": lambda: rng.choice([-1.0, 0.0, 1.0], n, p=[0.2, 0.6, 0.2]),
        "sparse": lambda: np.where(rng.random(n) < 0.2, rng.normal(size=n), 0.0),
    }
    defined = np.array([fieller_interval(np.zeros(n), draws[kind]()).defined for _ in range(SAMPLES)], np.float64)
    radius = bernstein_radius(float(defined.var(ddof=1)), SAMPLES)
    assert defined.mean() <= NOMINAL + radius
    if kind == "normal":
        assert defined.mean() >= NOMINAL - radius
