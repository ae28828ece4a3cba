from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from unforgotten.theory.models.bootstrap import Ratio
from unforgotten.theory.models.recovery import recovered_fraction
from unforgotten.theory.models.retained import (
    Direction,
    memory_direction,
    quantization_robustness,
    retained_ratios,
    symmetric_robustness,
)
from unforgotten.verification.chance import hoeffding_radius, rng_for
from unforgotten.verification.oracles import U64

SEED = 11
sixteenths = st.integers(0, 64).map(lambda k: k / 16)
pairs = st.integers(2, 8).flatmap(lambda n: st.tuples(*[hnp.arrays(np.float64, n, elements=sixteenths)] * 2))


def scores(name: str, mean: float, n: int = 200) -> NDArray[Any]:
    return mean + 0.1 * rng_for("retained", name, mean).uniform(-1, 1, n)


def robustness(u: NDArray[Any], q: NDArray[Any], direction: Direction = "rises") -> Ratio:
    return quantization_robustness(u, q, direction, seed=SEED)


@given(pairs)
def test_retained_ratios__are_the_exact_quotients(pair: tuple[NDArray[Any], NDArray[Any]]) -> None:
    q, r = pair
    got = retained_ratios(q, target=r, quantized_target=r, retrained=q, seed=SEED)
    top, bottom = (sum(Fraction(x) for x in row.tolist()) for row in (q, r))
    if bottom:
        expected = Fraction(top, 1) / bottom
        # two means and a quotient of exact sums
        assert abs(Fraction(got.of_target.value) - expected) <= 4 * Fraction(U64) * expected
    else:
        assert math.isnan(got.of_target.value)
        assert not got.of_target.defined
    assert got.of_target == got.of_quantized_target or not bottom
    assert got.of_retrained.value == 1 or not top


def test_retained_ratios__cover_the_truth_and_tell_the_references_apart() -> None:
    """The intervals hold the quotient of the true means, which are known; a widened interval of 6 standard errors."""
    got = retained_ratios(
        scores("q", 0.3),
        target=scores("t", 0.9),
        quantized_target=scores("qt", 0.6),
        retrained=scores("r", 0.2),
        seed=SEED,
    )
    for ratio, truth in zip(got, (0.3 / 0.9, 0.3 / 0.6, 0.3 / 0.2), strict=True):
        assert ratio.defined
        assert abs(ratio.value - truth) <= 6 * ratio.stderr
        assert ratio.low < ratio.value < ratio.high
    assert got.of_target.high < got.of_quantized_target.low < got.of_retrained.low


def test_retained_ratios__are_undefined_against_nothing() -> None:
    noise = rng_for("nothing").normal(0, 1, 50)
    got = retained_ratios(
        scores("q", 0.3, 50),
        target=noise - noise.mean(),
        quantized_target=scores("qt", 0.6, 50),
        retrained=np.zeros(50),
        seed=SEED,
    )
    assert [r.defined for r in got] == [False, True, False]
    assert got.of_retrained.low == -math.inf


def test_retained_ratios__depend_on_the_origin_where_rho_does_not() -> None:
    u, q, t = scores("u", 0.2), scores("q", 0.4), scores("t", 0.9)
    plain, moved = (
        (
            recovered_fraction(u + x, q + x, t + x, seed=SEED).rho,
            retained_ratios(q + x, target=t + x, quantized_target=t + x, retrained=u + x, seed=SEED).of_target.value,
        )
        for x in (0.0, 1.0)
    )
    assert abs(plain[0] - moved[0]) <= 2 * U64 * 2 * 5 / 0.6 * 2  # as in test_recovery: each item rounded at size 2
    assert abs(plain[1] - moved[1]) > 0.2


def test_memory_direction__of_a_score_and_of_a_loss() -> None:
    knows, ignorant = scores("t", 0.9), scores("r", 0.2)
    assert memory_direction(knows, ignorant, seed=SEED) == "rises"
    assert memory_direction(ignorant, knows, seed=SEED) == "falls"
    assert memory_direction(knows, knows, seed=SEED) == "unclear"


REPLICATES = 600


def test_memory_direction__is_seldom_wrong_without_a_difference() -> None:
    """A nominal 5 % at 40 items; Hoeffding 1e-10 on top, and 2 % for the bootstrap of 40 items being narrow."""
    calls = []
    for i in range(REPLICATES):
        rng = rng_for("no difference", i)
        calls.append(memory_direction(rng.uniform(size=40), rng.uniform(size=40), seed=i) != "unclear")
    assert np.mean(calls) <= 0.05 + 0.02 + hoeffding_radius(REPLICATES)


@given(pairs)
def test_quantization_robustness__is_the_exact_clipped_quotient(pair: tuple[NDArray[Any], NDArray[Any]]) -> None:
    before, after = (sum((Fraction(x) for x in row.tolist()), Fraction(0)) for row in pair)
    cases: list[tuple[Direction, Fraction, Fraction]] = [("rises", before, after), ("falls", after, before)]
    for direction, less, more in cases:
        got = robustness(*pair, direction)
        if less == more == 0:
            assert math.isnan(got.value)
            assert not got.defined
            continue
        expected = less / more if more > less else Fraction(1)
        assert abs(Fraction(got.value) - expected) <= 4 * Fraction(U64)
        assert 0 <= got.low <= got.high <= 1


def test_quantization_robustness__is_low_only_where_knowledge_comes_back() -> None:
    low, high = scores("low", 0.2), scores("high", 0.4)
    back, gone = robustness(low, high), robustness(high, low)
    assert abs(back.value - 0.5) <= 6 * back.stderr
    assert gone[:4] == (1, 1, 1, 0)


def test_quantization_robustness__needs_the_direction() -> None:
    """A forget loss of 3 that falls to 1.5 is recovery: Q = 1/2. Read as a score it would be a perfect 1."""
    before, after = scores("loss", 3.0), scores("loss", 1.5)
    assert robustness(before, after, "rises").value == 1
    right = robustness(before, after, "falls")
    assert abs(right.value - 0.5) <= 6 * right.stderr
    unclear = robustness(before, after, "unclear")
    assert not unclear.defined
    assert math.isnan(unclear.value)


def test_quantization_robustness__is_blind_to_destruction_and_the_symmetric_form_is_not() -> None:
    before, broken = scores("u", 0.4), np.zeros(200)
    assert robustness(before, broken).value == 1
    assert symmetric_robustness(float(before.mean()), 0.0) == 0


@given(st.integers(0, 100), st.integers(0, 100))
def test_symmetric_robustness__is_symmetric_and_1_at_rest(a: int, b: int) -> None:
    got = symmetric_robustness(a, b)
    assert got == symmetric_robustness(b, a)
    exact = 1 - Fraction(abs(a - b), a + b) if a + b else Fraction(1)
    assert abs(Fraction(got) - exact) <= 2 * Fraction(U64)
    assert (got == 1) == (a == b)


def test_quantization_robustness__takes_seeds() -> None:
    u = np.stack([scores("a", 0.2), scores("b", 0.2)])
    q = np.stack([scores("c", 0.2), scores("d", 0.6)])
    one, two = robustness(u[1], q[1]), robustness(u, q)
    assert two.high - two.low > 3 * (one.high - one.low)


def test_quantization_robustness__skips_resamples_of_nothing() -> None:
    """Two items, one of which is 0 before and after: a resample of it alone is 0 / 0."""
    got = robustness(np.array([0.0, 1.0]), np.array([0.0, 2.0]))
    assert got == (0.5, 0.5, 0.5, 0.0, True)


def test_quantization_robustness__refuses_negative_metrics() -> None:
    for u, q in ((-1.0, 1.0), (1.0, -1.0)):
        with pytest.raises(ValueError, match="must be non-negative"):
            robustness(np.full(2, u), np.full(2, q))
