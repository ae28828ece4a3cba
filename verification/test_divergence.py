from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import mpmath
import numpy as np
import pytest
from hypothesis import example, given

from unforgotten.theory.models.divergence import CROSSING, metric_change_upper_bound, total_variation_upper_bound
from unforgotten.verification.oracles import U64

DIGITS = 50
weights = (
    st.integers(1, 6)
    .flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 50), min_size=n, max_size=n)] * 2))
    .filter(lambda x: sum(x[0]) > 0 and sum(x[1]) > 0)
)


def exact_pair(p: list[int], q: list[int]) -> tuple[Any, Any]:
    """TV and KL(p || q) with DIGITS digits; KL inf where q excludes what p allows."""
    sp, sq = mpmath.mpf(sum(p)), mpmath.mpf(sum(q))
    tv = mpmath.fsum(abs(a / sp - b / sq) for a, b in zip(p, q, strict=True)) / 2
    if any(a and not b for a, b in zip(p, q, strict=True)):
        return tv, mpmath.inf
    kl = mpmath.fsum(a / sp * mpmath.log(a / sp / (b / sq)) for a, b in zip(p, q, strict=True) if a)
    return tv, abs(kl)  # rounds to -1e-50 at equality


def bound_of(kl: float) -> float:
    return float(total_variation_upper_bound(kl))


@given(weights)
@example(([1, 0], [0, 1]))
@example(([1, 1], [1, 1]))
def test_total_variation_upper_bound__holds_for_exact_distributions(pair: tuple[list[int], list[int]]) -> None:
    with mpmath.workdps(DIGITS):
        tv, kl = exact_pair(*pair)
        assert tv <= bound_of(float(kl) * (1 + 2 * U64)) + mpmath.mpf(10) ** (2 - DIGITS)


@given(st.floats(0, 1e3))
@example(1e-300)
@example(5e-324)  # half of it is 0 in doubles
def test_total_variation_upper_bound__is_the_formula_rounded_up(kl: float) -> None:
    with mpmath.workdps(DIGITS):
        x = mpmath.mpf(kl)
        exact = min(mpmath.sqrt(x / 2), mpmath.sqrt(-mpmath.expm1(-x)))
        assert exact <= bound_of(kl) <= min(1, exact * (1 + 16 * U64))


def test_total_variation_upper_bound__changes_hands_at_the_crossing() -> None:
    """KL/2 = 1 - exp(-KL): Pinsker is the smaller one below, Bretagnolle-Huber above."""
    with mpmath.workdps(DIGITS):
        root = mpmath.findroot(lambda x: x / 2 + mpmath.expm1(-x), 1.6)
        assert abs(root - CROSSING) < 1e-13  # CROSSING is written with 15 digits
    assert bound_of(1.0) == pytest.approx(math.sqrt(0.5), rel=16 * U64, abs=0)
    assert bound_of(3.0) == pytest.approx(math.sqrt(-math.expm1(-3)), rel=16 * U64, abs=0)


def test_total_variation_upper_bound__pinsker_is_sharp_for_near_distributions() -> None:
    """Coins 1/2 and 1/2 + x: TV = x, KL = 2 x^2 + O(x^4)."""
    with mpmath.workdps(DIGITS):
        x = mpmath.mpf(2) ** -10
        half = mpmath.mpf(1) / 2
        kl = half * mpmath.log(half / (half + x)) + half * mpmath.log(half / (half - x))
        # KL = -log(1 - 4 x^2) / 2 = 2 x^2 (1 + 2 x^2 + …), so the bound is x (1 + x^2 + …)
        assert x <= bound_of(float(kl)) <= x * (1 + 2 * x**2)


def test_total_variation_upper_bound__pinsker_alone_is_vacuous_beyond_2() -> None:
    assert math.sqrt(4.0 / 2) > 1 > bound_of(4.0)
    assert bound_of(math.inf) == 1
    assert bound_of(0.0) == 0


@given(st.floats(0, 50), st.floats(0, 50))
def test_total_variation_upper_bound__is_monotone(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert bound_of(low) <= bound_of(high) * (1 + 4 * U64)


@pytest.mark.parametrize("bad", [-1e-9, math.nan])
def test_total_variation_upper_bound__refuses(bad: float) -> None:
    with pytest.raises(ValueError, match="kl must be non-negative nats"):
        total_variation_upper_bound(bad)


@given(weights, st.lists(st.integers(0, 8), min_size=6, max_size=6), st.integers(1, 100))
def test_metric_change_upper_bound__holds_for_any_score(
    pair: tuple[list[int], list[int]], scores: list[int], high: int
) -> None:
    """A metric with values in [0, high] under two exact distributions."""
    with mpmath.workdps(DIGITS):
        p, q = pair
        _, kl = exact_pair(p, q)
        means = [
            mpmath.fsum(mpmath.mpf(s) * high / 8 * a for s, a in zip(scores, x, strict=False)) / sum(x) for x in (p, q)
        ]
        bound = metric_change_upper_bound(float(kl) * (1 + 2 * U64), 0, high)
        assert abs(means[0] - means[1]) <= bound + mpmath.mpf(10) ** (4 - DIGITS)


@given(st.lists(st.floats(0, 20), min_size=1, max_size=30))
def test_metric_change_upper_bound__by_prompt_is_no_larger_than_by_mean(kls: list[float]) -> None:
    """Jensen: both branches are concave in KL."""
    by_prompt = metric_change_upper_bound(np.array(kls))
    assert by_prompt <= metric_change_upper_bound(math.fsum(kls) / len(kls)) * (1 + 16 * U64) + 2.0**-1000


def test_metric_change_upper_bound__is_attained_by_disjoint_answers() -> None:
    assert metric_change_upper_bound(np.array([math.inf, 0.0]), 0, 100) == pytest.approx(50, rel=8 * U64, abs=0)


def test_metric_change_upper_bound__chains_over_tokens() -> None:
    """Two tokens: the KL of the pair is the expected sum of the tokens' KL, with 50 digits."""
    with mpmath.workdps(DIGITS):
        p, q = [mpmath.mpf(1) / 4, mpmath.mpf(3) / 4], [mpmath.mpf(1) / 2] * 2
        second = {0: (p, q), 1: (q, p)}
        joint = mpmath.fsum(
            p[i] * second[i][0][j] * mpmath.log(p[i] * second[i][0][j] / (q[i] * second[i][1][j]))
            for i in range(2)
            for j in range(2)
        )
        kl = [
            mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(*x, strict=True)) for x in ((p, q), second[0], second[1])
        ]
        summed = kl[0] + p[0] * kl[1] + p[1] * kl[2]
        assert abs(joint - summed) < mpmath.mpf(10) ** (4 - DIGITS)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("low must be at most high", lambda: metric_change_upper_bound(0.1, 1, 0)),
        ("low must be at most high", lambda: metric_change_upper_bound(0.1, 0, math.inf)),
        ("kl must hold at least one", lambda: metric_change_upper_bound(np.array([]))),
    ],
)
def test_metric_change_upper_bound__refuses(message: str, call: Any) -> None:
    with pytest.raises(ValueError, match=message):
        call()
