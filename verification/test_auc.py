from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from unforgotten.theory.models.auc import auc, auc_change_upper_bound, auc_range
from unforgotten.verification.chance import rng_for
from unforgotten.verification.oracles import U64

# Quarters: differences and sums are exact, so ties and gaps of just 2 c occur and the ulp outward decides them safely.
quarters = st.integers(-16, 16).map(lambda k: k / 4)
scores = st.integers(1, 8).flatmap(lambda n: hnp.arrays(np.float64, n, elements=quarters))
changes = st.integers(0, 12).map(lambda k: k / 8)


def pairs_auc(positive: list[Fraction], negative: list[Fraction]) -> Fraction:
    wins = sum(Fraction(1) if p > n else Fraction(p == n, 2) for p, n in product(positive, negative))
    return Fraction(wins, len(positive) * len(negative))


def exact(x: NDArray[Any]) -> list[Fraction]:
    return [Fraction(v) for v in x.tolist()]


def test_auc__by_hand() -> None:
    assert auc(np.array([2.0, 1.0]), np.array([1.0, 0.0])) == (1 + 1 + 0.5 + 1) / 4


@given(scores, scores)
def test_auc__counts_pairs(p: NDArray[Any], n: NDArray[Any]) -> None:
    expected = pairs_auc(exact(p), exact(n))
    assert abs(Fraction(auc(p, n)) - expected) <= Fraction(U64)


@given(scores, scores)
def test_auc__mirrors(p: NDArray[Any], n: NDArray[Any]) -> None:
    assert abs(auc(p, n) + auc(n, p) - 1) <= 2 * U64


def test_auc__is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = rng_for("auc")
    p, n = rng.integers(0, 30, 80) / 8, rng.integers(-5, 20, 50) / 8
    labels = np.repeat([1, 0], [80, 50])
    slack = 8 * 130 * U64  # a trapezoid a score
    assert abs(metrics.roc_auc_score(labels, np.concatenate([p, n])) - auc(p, n)) <= slack


@given(scores, scores, changes, st.integers(0, 2**32))
def test_auc_range__holds_for_every_change(p: NDArray[Any], n: NDArray[Any], change: float, seed: int) -> None:
    rng = rng_for("scores", seed, change)
    ends = auc_range(p, n, change)
    moved = [x + change * rng.choice([-1.0, -0.5, 0.0, 0.5, 1.0], x.shape) for x in (p, n)]
    assert ends.low <= auc(*moved) <= ends.high
    assert ends.low <= ends.auc <= ends.high


@given(scores, scores, changes)
def test_auc_range__both_ends_are_attained(p: NDArray[Any], n: NDArray[Any], change: float) -> None:
    """By a change an ulp larger than c, which breaks the ties that c makes to the worse side; but for an ulp of the AUC."""
    ends = auc_range(p, n, change)
    more = change + 2.0**-40 if change else 0.0
    low = pairs_auc(exact(p - more), exact(n + more))
    high = pairs_auc(exact(p + more), exact(n - more))
    assert abs(Fraction(ends.low) - low) <= 2 * Fraction(U64)
    assert abs(Fraction(ends.high) - high) <= 2 * Fraction(U64)


@given(scores, scores, changes)
def test_auc_change_upper_bound__is_the_mass_of_near_pairs(p: NDArray[Any], n: NDArray[Any], change: float) -> None:
    near = sum(abs(a - b) <= 2 * Fraction(change) for a, b in product(exact(p), exact(n)))
    mass = Fraction(near, len(p) * len(n)) if change else Fraction(0)
    bound = Fraction(auc_change_upper_bound(p, n, change))
    assert mass <= bound <= mass + 2 * Fraction(U64)


@given(scores, scores, changes)
def test_auc_change_upper_bound__contains_the_range(p: NDArray[Any], n: NDArray[Any], change: float) -> None:
    ends = auc_range(p, n, change)
    widest = max(ends.high - ends.auc, ends.auc - ends.low)
    assert widest <= auc_change_upper_bound(p, n, change) + 4 * U64


def test_auc_change_upper_bound__a_tie_at_twice_the_change_counts() -> None:
    """With `<` in place of `<=` it is false: a gap of just 2 c becomes a tie, which costs half a pair."""
    p, n = np.array([1.0]), np.array([0.0])
    moved = auc(p - 0.5, n + 0.5)
    assert moved == 0.5
    assert auc_change_upper_bound(p, n, 0.5) >= 1 - moved


def test_auc_change_upper_bound__min_k_moves_by_its_largest_log_probability() -> None:
    """MinK, the mean of the k smallest log-probabilities, is 1-Lipschitz in the largest change."""
    rng = rng_for("mink")
    for _ in range(50):
        x = rng.normal(0, 3, 40)
        y = x + rng.uniform(-0.5, 0.5, 40)
        a, b = (np.sort(v)[:8].mean() for v in (x, y))
        assert abs(a - b) <= np.abs(y - x).max() + 40 * U64 * 16


def test_auc_change_upper_bound__log_probabilities_move_by_twice_the_logits() -> None:
    rng = rng_for("log softmax")
    for _ in range(50):
        x = rng.normal(0, 3, 20)
        y = x + rng.uniform(-0.5, 0.5, 20)
        a, b = (v - np.log(np.exp(v).sum()) for v in (x, y))
        assert np.abs(a - b).max() <= 2 * np.abs(y - x).max() + 64 * U64 * 16


@pytest.mark.parametrize("bound", [auc_range, auc_change_upper_bound])
def test_auc__refuses(bound: Any) -> None:
    ok = np.ones(2)
    with pytest.raises(ValueError, match="positive must be a vector"):
        bound(np.ones((1, 2)), ok, 0.1)
    with pytest.raises(ValueError, match="negative must be a vector"):
        bound(ok, np.array([]), 0.1)
    with pytest.raises(ValueError, match="positive must be finite"):
        bound(np.array([np.nan]), ok, 0.1)
    for bad in (-0.1, np.inf):
        with pytest.raises(ValueError, match="change must be finite"):
            bound(ok, ok, bad)
