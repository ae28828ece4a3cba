from __future__ import annotations

from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from scipy.stats import false_discovery_control

from unforgotten.theory.laws.multiplicity import false_discoveries
from unforgotten.verification.chance import hoeffding_radius, rng_for
from unforgotten.verification.oracles import U64

p_values = st.lists(st.integers(0, 1000).map(lambda k: k / 1000), min_size=1, max_size=20)
levels = st.sampled_from([0.01, 0.05, 0.2])


def step_up(p: list[float], level: float, *, dependent: bool) -> set[int]:
    """The rule as printed, in rationals: the largest i with p_(i) <= i level / (m c), and all p up to it."""
    m = len(p)
    c = sum(Fraction(1, i) for i in range(1, m + 1)) if dependent else Fraction(1)
    ordered = sorted((Fraction(x), i) for i, x in enumerate(p))
    k = max((j for j in range(1, m + 1) if ordered[j - 1][0] * m * c <= j * Fraction(level)), default=0)
    return {i for _, i in ordered[:k]}


@given(p_values, levels, st.booleans())
def test_false_discoveries__are_those_of_the_rule(p: list[float], level: float, dependent: bool) -> None:
    got = false_discoveries(np.array(p), level, dependent=dependent)
    # thousandths of m c against i level: a tie can be rounded either way, so ask on both sides of it
    slack = 64 * U64
    inner, outer = (step_up(p, level * (1 + side * slack), dependent=dependent) for side in (-1, 1))
    assert inner <= set(np.flatnonzero(got.rejected).tolist()) <= outer


@given(p_values, levels, st.booleans())
def test_false_discoveries__adjust_as_scipy_does(p: list[float], level: float, dependent: bool) -> None:
    expected = false_discovery_control(p, method="by" if dependent else "bh")
    got = false_discoveries(np.array(p), level, dependent=dependent)
    assert np.abs(got.adjusted - expected).max() <= 64 * U64
    assert (got.rejected == (got.adjusted <= level)).all()


@given(p_values, levels)
def test_false_discoveries__dependence_costs(p: list[float], level: float) -> None:
    plain, careful = (false_discoveries(np.array(p), level, dependent=d) for d in (False, True))
    assert (careful.adjusted >= plain.adjusted).all()
    assert not (careful.rejected & ~plain.rejected).any()


@given(p_values, levels, st.integers(0, 2**32))
def test_false_discoveries__ignore_the_order(p: list[float], level: float, seed: int) -> None:
    order = rng_for("order", seed).permutation(len(p))
    a = false_discoveries(np.array(p), level).adjusted[order]
    assert (a == false_discoveries(np.array(p)[order], level).adjusted).all()


def test_false_discoveries__of_one_test_is_the_test() -> None:
    assert false_discoveries(np.array([0.05]), 0.05).rejected.all()
    assert not false_discoveries(np.array([0.051]), 0.05).rejected.any()


REPLICATES = 4_000
NULLS, EFFECTS, LEVEL = 30, 10, 0.2


def false_share(*, dependent: bool, one_sided_error: float = 1.0) -> float:
    """Mean share of false discoveries; p-values of effects are near 0; dependent: every null has the same p."""
    rng = rng_for("fdr", dependent, one_sided_error)
    shares = []
    for _ in range(REPLICATES):
        nulls = rng.uniform(size=1 if dependent else NULLS) ** one_sided_error * np.ones(NULLS)
        p = np.concatenate([nulls, 1e-6 * rng.uniform(size=EFFECTS)])
        rejected = false_discoveries(p, LEVEL, dependent=dependent).rejected
        shares.append(rejected[:NULLS].sum() / max(rejected.sum(), 1))
    return float(np.mean(shares))


@pytest.mark.parametrize("dependent", [False, True])
def test_false_discoveries__control_the_rate(dependent: bool) -> None:
    """Hoeffding, false alarm 1e-10."""
    assert false_share(dependent=dependent) <= LEVEL * NULLS / (NULLS + EFFECTS) + hoeffding_radius(REPLICATES)


def test_false_discoveries__the_simulation_sees_p_values_that_are_too_small() -> None:
    """p squared is not a p-value: the same test refuses it."""
    assert false_share(dependent=False, one_sided_error=2.0) > LEVEL * NULLS / (NULLS + EFFECTS) + hoeffding_radius(
        REPLICATES
    )


@pytest.mark.parametrize(
    ("message", "p", "level"),
    [
        ("p must be a vector", [], 0.1),
        ("p must be a vector", [[0.1]], 0.1),
        ("p must be in", [1.1], 0.1),
        ("p must be in", [np.nan], 0.1),
        ("p must be in", [-0.1], 0.1),
        ("level must be in", [0.1], 0.0),
        ("level must be in", [0.1], 1.0),
        ("level must be in", [0.1], 2.0),
    ],
)
def test_false_discoveries__refuses(message: str, p: Any, level: float) -> None:
    with pytest.raises(ValueError, match=message):
        false_discoveries(np.array(p), level)
