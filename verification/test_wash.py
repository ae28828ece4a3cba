from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray
from scipy.special import rel_entr

from unforgotten.theory.formats import format_named
from unforgotten.theory.quantize import encode, fit_grid, to_blocks
from unforgotten.theory.update import Survival, survival
from unforgotten.theory.wash import bernoulli_divergence, wash_test
from unforgotten.verification.chance import FALSE_ALARM, rng_for
from unforgotten.verification.oracles import U64

SIXTEENTHS = st.integers(0, 16).map(lambda n: Fraction(n, 16))
unit = st.floats(0, 1)


def poisson_binomial(probabilities: list[Fraction]) -> list[Fraction]:
    """The exact law of a sum of independent Bernoulli variables."""
    law = [Fraction(1)]
    for p in probabilities:
        stay, move = [x * (1 - p) for x in law], [x * p for x in law]
        law = [a + b for a, b in zip([*stay, Fraction(0)], [Fraction(0), *move], strict=True)]
    return law


def outcome_of(k: int, probabilities: list[Fraction]) -> tuple[float, float]:
    expected = float(sum(probabilities))
    variance = float(sum(p * (1 - p) for p in probabilities))
    return wash_test(k, expected, variance, len(probabilities))


@given(st.lists(SIXTEENTHS, min_size=1, max_size=10))
def test_wash_test__p_is_never_too_small(probabilities: list[Fraction]) -> None:
    """Exact law, unequal p_i: P[p-value <= alpha] <= alpha for every alpha that can occur."""
    law = poisson_binomial(probabilities)
    p_values = [outcome_of(k, probabilities)[1] for k in range(len(law))]
    for alpha in p_values:
        mass = sum(m for m, p in zip(law, p_values, strict=True) if p <= alpha)
        # n (a log a - a log b) with logs up to ln 160: 4 roundings of at most 6 each, magnified n times by exp
        slack = Fraction(U64) * (4 * 6 * len(law) + 4)
        assert mass <= Fraction(alpha) * (1 + slack)


@given(st.lists(SIXTEENTHS, min_size=1, max_size=10), st.data())
def test_wash_test__z_is_the_standard_score(
    probabilities: list[Fraction], data: st.DataObject
) -> None:
    k = data.draw(st.integers(0, len(probabilities)))
    variance = sum(p * (1 - p) for p in probabilities)
    z, _ = outcome_of(k, probabilities)
    if variance == 0:
        assert math.isnan(z)
        return
    distance = k - sum(probabilities)
    slack = 6 * U64  # the root and the quotient, squared; the sums of sixteenths are exact
    assert abs(Fraction(z) ** 2 * variance - distance**2) <= slack * distance**2
    assert (z < 0) == (distance < 0)


@given(st.integers(1, 10**9), st.data())
def test_wash_test__p_falls_with_the_distance(weights: int, data: st.DataObject) -> None:
    expected = data.draw(st.integers(0, weights))
    near, far = sorted(data.draw(st.tuples(st.integers(0, weights), st.integers(0, weights))))
    if far > expected:
        near = max(near, expected)
    else:
        near, far = far, near
    at_near, at_far = (wash_test(k, float(expected), 1.0, weights).p for k in (near, far))
    # relative error of p: n times the rounding of the divergence, which is at most 8 u * (logs up to ln 1e9 = 21)
    slack = 8 * 21 * U64 * weights
    assert at_far <= at_near * (1 + slack)


@given(unit, unit)
def test_bernoulli_divergence__is_the_relative_entropy(x: float, p: float) -> None:
    terms = ((x, p), (1 - x, 1 - p))
    expected = sum(float(rel_entr(a, b)) for a, b in terms)
    if math.isinf(expected):  # p excludes x, or x / p overflows in scipy
        assert bernoulli_divergence(x, p) > 700 * min(x, 1 - x)
        return
    size = sum(a * (abs(math.log(a)) + abs(math.log(b)) + 1) for a, b in terms if a > 0)
    slack = 4 * U64 * size + 4 * U64  # either method: logs, difference, product; and one sum
    assert abs(bernoulli_divergence(x, p) - max(expected, 0.0)) <= slack


@given(unit, unit)
def test_bernoulli_divergence__is_above_pinsker(x: float, p: float) -> None:
    slack = (
        64 * U64
    )  # the terms are below 1 in size where the bound is near: x |log x| and its like
    assert bernoulli_divergence(x, p) >= 2 * (x - p) ** 2 - slack


@given(unit)
def test_bernoulli_divergence__is_0_at_itself(p: float) -> None:
    assert bernoulli_divergence(p, p) == 0


def test_bernoulli_divergence__is_infinite_where_impossible() -> None:
    assert bernoulli_divergence(0.5, 0.0) == bernoulli_divergence(0.5, 1.0) == math.inf
    assert bernoulli_divergence(0.0, 0.0) == bernoulli_divergence(1.0, 1.0) == 0


def test_bernoulli_divergence__is_finite_where_the_ratio_overflows() -> None:
    assert bernoulli_divergence(1.0, 1e-320) == -math.log(1e-320)


def test_wash_test__refuses_no_weights() -> None:
    with pytest.raises(ValueError, match="weights must be positive"):
        wash_test(0, 0.0, 0.0, 0)


NAMES = ("int4-g64", "nf4-b64", "fp4-b64", "int4-g64-paper", "int8-row")
ROWS, COLUMNS = 100, 640


def under_u(name: str, size: float, *, aim: str) -> Survival:
    """Weights uniform on the reach of a fixed grid, so that U holds exactly, and updates of one size.

    `aim`: "chance" takes random signs; "away" turns a sign where the code would flip; "at" where it would not.
    The first weight of a block sets absmax and is not updated. Signs are drawn before any code is known.
    """
    fmt = format_named(name)
    rng = rng_for(name, size)
    w = rng.uniform(-1, 1, size=(ROWS, COLUMNS)).astype(np.float32)
    w[:, :: fmt.block_size or COLUMNS] = -1  # the paper's rule clips +absmax
    delta = (size * rng.choice([-1, 1], size=w.shape)).astype(np.float32)
    delta[:, :: fmt.block_size or COLUMNS] = 0
    if aim != "chance":
        flips = flipped(w, delta, name)
        turned = np.where(flips == (aim == "away"), -delta, delta)
        better = flipped(w, turned, name) != flips
        delta = np.where(better, turned, delta)
    return survival(w, w + delta, fmt, "fixed")


def flipped(w: NDArray[Any], delta: NDArray[Any], name: str) -> NDArray[Any]:
    fmt = format_named(name)
    grid = fit_grid(to_blocks(w, fmt), fmt)
    before, after = (encode(to_blocks(x, fmt), grid, fmt) for x in (w, w + delta))
    return np.asarray(before != after).reshape(w.shape)


def outcome(s: Survival) -> tuple[float, float]:
    return wash_test(s.code_flips, s.expected_flips, s.flips_variance, s.weights)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [0.0005, 0.004, 0.03])
def test_wash_test__does_not_cry_wolf_under_u(name: str, size: float) -> None:
    """T6, T12 and `survival` together: flips of the kernel against the law's sum. False alarm 1e-10 by `p`."""
    s = under_u(name, size, aim="chance")
    assert s.expected_flips > 50
    assert outcome(s)[1] >= FALSE_ALARM


@pytest.mark.parametrize("name", NAMES)
def test_wash_test__sees_an_update_that_avoids_the_thresholds(name: str) -> None:
    z, p = outcome(under_u(name, 0.004, aim="away"))
    assert z < 0
    assert p < FALSE_ALARM


@pytest.mark.parametrize("name", NAMES)
def test_wash_test__sees_an_update_that_aims_at_the_thresholds(name: str) -> None:
    z, p = outcome(under_u(name, 0.004, aim="at"))
    assert z > 0
    assert p < FALSE_ALARM


def test_wash_test__sample_size_resolves_a_tenth() -> None:
    """A tenth fewer flips than 10,000 expected of a million is beyond chance; a hundredth is not."""
    expected, weights = 10_000.0, 1_000_000
    assert wash_test(9_000, expected, 9_900.0, weights).p < FALSE_ALARM
    assert wash_test(9_900, expected, 9_900.0, weights).p > FALSE_ALARM


@pytest.mark.parametrize("name", ["int4-g64", "nf4-b64", "fp4-b64"])
def test_position_distance__is_small_under_u(name: str) -> None:
    """Dvoretzky-Kiefer-Wolfowitz-Massart: P[distance > x] <= 2 exp(-2 n x^2), and the bins only shrink it."""
    s = under_u(name, 0.004, aim="chance")
    n = sum(s.positions)
    assert s.position_distance <= math.sqrt(math.log(2 / FALSE_ALARM) / (2 * n))
    assert n > ROWS * COLUMNS / 2
