from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray
from scipy.special import rel_entr
from scipy.stats import binom

from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import encode, fit_grid, to_blocks
from unforgotten.theory.laws.update import Survival, survival
from unforgotten.theory.laws.wash import (
    EXACT_OPERATIONS,
    bernoulli_divergence,
    exact_wash_test,
    permutation_wash_test,
    poisson_binomial_tails,
    wash_test,
)
from unforgotten.verification.chance import FALSE_ALARM, hoeffding_radius, rng_for
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
def test_wash_test__z_is_the_standard_score(probabilities: list[Fraction], data: st.DataObject) -> None:
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
    slack = 64 * U64  # the terms are below 1 in size where the bound is near: x |log x| and its like
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


@given(st.lists(SIXTEENTHS, min_size=1, max_size=12), st.data())
def test_exact_wash_test__is_the_exact_tail(probabilities: list[Fraction], data: st.DataObject) -> None:
    """Against the law in rationals: never below, and above by the stated roundings."""
    k = data.draw(st.integers(0, len(probabilities)))
    law = poisson_binomial(probabilities)
    tails = sum(law[: k + 1], Fraction(0)), sum(law[k:], Fraction(0))
    p = np.array([float(x) for x in probabilities])
    slack = 1 + Fraction(U64) * (12 * len(p) + 64)
    for exact, got in zip(tails, poisson_binomial_tails(k, p), strict=True):
        assert exact <= Fraction(got) <= exact * slack + Fraction(2) ** -1000
    doubled = min(Fraction(1), 2 * min(tails))
    assert doubled <= Fraction(exact_wash_test(k, p).p) <= doubled * slack + Fraction(2) ** -1000


@given(st.lists(SIXTEENTHS, min_size=1, max_size=12), st.data())
def test_exact_wash_test__is_below_the_bound_with_the_same_z(
    probabilities: list[Fraction], data: st.DataObject
) -> None:
    k = data.draw(st.integers(0, len(probabilities)))
    exact = exact_wash_test(k, np.array([float(x) for x in probabilities]))
    z, p = outcome_of(k, probabilities)
    # what may be lost to underflow is added to a p of 0
    assert exact.p <= p * (1 + U64 * (24 * len(probabilities) + 200)) + 2.0**-1000
    assert exact.z == z or (math.isnan(z) and math.isnan(exact.z)) or abs(exact.z / z - 1) <= 16 * U64


def test_exact_wash_test__is_the_binomial_for_equal_probabilities() -> None:
    """A second method, scipy's incomplete beta function; tails down to 1e-60, where a difference from 1 would be 0."""
    n, p = 2_000, np.full(2_000, 0.1)
    for k in (20, 150, 200, 260, 420):
        lower, upper = poisson_binomial_tails(k, p)
        # scipy's tails are good to 1e-11 here; 1 + slack of ours is 1 + 1e-12
        assert lower == pytest.approx(binom.cdf(k, n, 0.1), rel=1e-9, abs=0)
        assert upper == pytest.approx(binom.sf(k - 1, n, 0.1), rel=1e-9, abs=0)


def test_exact_wash_test__keeps_small_probabilities_beside_certain_ones() -> None:
    """1 - (1 - 1e-20) is 0 in doubles: P[all flip] = 1e-20 must not become 0."""
    p = np.array([1.0, 1.0, 1e-20])
    _, upper = poisson_binomial_tails(3, p)
    assert 1e-20 <= upper <= 1e-20 * (1 + 200 * U64)


def test_exact_wash_test__falls_back_where_the_law_is_too_long() -> None:
    n = 1 << 16
    k = EXACT_OPERATIONS // n + 1
    p = np.full(n, k / n)
    far = k - 800
    assert exact_wash_test(k, p) == wash_test(k, float(p.sum()), float((p * (1 - p)).sum()), n)
    assert far > 0
    assert exact_wash_test(100, np.full(n, 0.0)).p <= 2.0**-900


@pytest.mark.parametrize("flips", [10, (1 << 16) - 10])
def test_exact_wash_test__costs_by_the_rarer_of_flips_and_stays(flips: int) -> None:
    """Of 65,536 weights: ten flips, or all but ten, are counted exactly, and so below Hoeffding's bound."""
    n = 1 << 16
    p = np.full(n, 1e-4 if flips < n / 2 else 1 - 1e-4)
    exact = exact_wash_test(flips, p)
    bound = wash_test(flips, float(p.sum()), float((p * (1 - p)).sum()), n)
    assert n * (n - 10) > EXACT_OPERATIONS
    assert exact.p < 0.9 * bound.p


@pytest.mark.parametrize(
    ("message", "flips", "p"),
    [
        ("probabilities must be in", 0, []),
        ("probabilities must be in", 0, [1.5]),
        ("probabilities must be in", 0, [math.nan]),
        ("flips must be in", 2, [0.5]),
        ("flips must be in", -1, [0.5]),
    ],
)
def test_exact_wash_test__refuses(message: str, flips: int, p: list[float]) -> None:
    with pytest.raises(ValueError, match=message):
        exact_wash_test(flips, np.array(p))


THRESHOLDS = np.arange(-6.5, 7)


class Strata(NamedTuple):
    v: NDArray[Any]
    shift: NDArray[Any]
    strata: NDArray[Any]


def skewed(seed: int, *, aim: str, n: int = 400) -> Strata:
    """Positions far from uniform (U is false), two strata with updates of other sizes, exchangeable inside unless aimed."""
    rng = rng_for("skewed", seed, aim, n)
    strata = np.arange(n) % 2
    place = rng.beta(2, 5, n) - 0.5
    v = np.round(rng.normal(0, 2, n)) + place
    size = np.where(strata == 0, 0.05, 0.4)
    shift = size * rng.choice([-1, 1], n) * rng.uniform(0.5, 1, n)
    if aim == "away":
        shift = -np.sign(place) * np.abs(shift)
    if aim == "at":
        shift = np.sign(place) * np.abs(shift)
    return Strata(v, shift, strata)


def permuted(s: Strata, *, seed: int = 1, permutations: int = 199) -> tuple[float, float]:
    return permutation_wash_test(*s, THRESHOLDS, seed=seed, permutations=permutations)


def test_permutation_wash_test__is_the_share_of_all_permutations() -> None:
    """Four weights of one stratum: 2,000 draws against all 24 orders; Hoeffding, false alarm 1e-10."""
    v = np.array([0.45, 0.1, -0.2, -0.4])
    shift = np.array([0.15, 0.02, -0.05, -0.2])
    codes = np.searchsorted(THRESHOLDS, v)
    flips = [
        int((np.searchsorted(THRESHOLDS, v + np.array(order)) != codes).sum())
        for order in itertools.permutations(shift.tolist())
    ]
    seen = flips[0]
    sides = [float(np.mean([f <= seen for f in flips])), float(np.mean([f >= seen for f in flips]))]
    draws = 2_000
    _, p = permutation_wash_test(v, shift, np.zeros(4, int), THRESHOLDS, seed=3, permutations=draws)
    slack = 2 * (hoeffding_radius(draws) + 1 / draws)
    assert abs(p - min(1.0, 2 * min(sides))) <= slack
    assert 0 < min(sides) < 0.5 - slack  # the comparison is of something


REPLICATES = 400


def test_permutation_wash_test__does_not_cry_wolf_where_u_is_false() -> None:
    """P[p <= alpha] <= alpha, Hoeffding 1e-10; T6 with U on the same weights is far too sure."""
    p = np.array([permuted(skewed(i, aim="chance"), seed=i)[1] for i in range(REPLICATES)])
    for alpha in (0.05, 0.2):
        assert (p <= alpha).mean() <= alpha + hoeffding_radius(REPLICATES)
    under_u_p = []
    for i in range(60):
        s = skewed(i, aim="chance", n=4_000)
        codes = np.searchsorted(THRESHOLDS, s.v)
        flips = int((np.searchsorted(THRESHOLDS, s.v + s.shift) != codes).sum())
        under_u_p.append(exact_wash_test(flips, np.minimum(np.abs(s.shift), 1)).p)
    assert np.mean(np.array(under_u_p) < 0.01) > 0.01 + hoeffding_radius(len(under_u_p))


@pytest.mark.parametrize(("aim", "sign"), [("away", -1), ("at", 1)])
def test_permutation_wash_test__sees_an_aim(aim: str, sign: int) -> None:
    """z is near -19 and 13, with a spread below 1.5 (40 seeds): six spreads beyond the 3 that is asked for."""
    z, p = permuted(skewed(0, aim=aim, n=4_000))
    assert z * sign > 3
    assert p == 2 / 200  # the smallest possible


@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_permutation_wash_test__never_mixes_strata(seed: int, draw: int) -> None:
    """Updates that flip every weight of one stratum and none of the other: all permutations flip the same."""
    v = np.zeros(20)
    strata = rng_for("strata", seed).integers(0, 2, 20)
    z, p = permutation_wash_test(v, np.where(strata == 0, 0.0, 1.0), strata, THRESHOLDS, seed=draw, permutations=20)
    assert math.isnan(z)
    assert p == 1


def test_permutation_wash_test__repeats_with_the_seed() -> None:
    s = skewed(5, aim="chance")
    assert permuted(s) == permuted(s)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("equal vectors", {"v": np.ones(3)}),
        ("equal vectors", {"v": np.ones((2, 1))}),
        ("must be finite", {"v": np.array([1, math.nan])}),
        ("must be finite", {"shift": np.array([1, math.inf])}),
        ("permutations must be at least 1", {"permutations": 0}),
    ],
)
def test_permutation_wash_test__refuses(message: str, change: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "v": np.zeros(2),
        "shift": np.zeros(2),
        "strata": np.zeros(2, int),
        "thresholds": THRESHOLDS,
        "seed": 0,
    }
    with pytest.raises(ValueError, match=message):
        permutation_wash_test(**(good | change))
