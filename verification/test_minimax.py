from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import decode, encode, fit_grid
from unforgotten.theory.laws.gating import gated_variance
from unforgotten.theory.laws.minimax import (
    code_information_upper_bound,
    flip_probability_upper_bound,
    unbiased_variance_lower_bound,
)
from unforgotten.verification.chance import hoeffding_radius, rng_for
from unforgotten.verification.oracles import U64
from unforgotten.verification.recording.tallies import record

TRIALS = 20_000
probabilities = st.floats(0, 1)


@st.composite
def thresholds(draw: st.DrawFn) -> list[Fraction]:
    """Draw the thresholds of a monotone quantizer on [0, 1], in 64ths; two may coincide. Shrinks to none."""
    return sorted(Fraction(k, 64) for k in draw(st.lists(st.integers(-8, 72), max_size=6)))


def flipped_length(places: list[Fraction], delta: Fraction) -> Fraction:
    """Return the measure of the w in [0, 1] with a threshold in (w, w + delta], by the lengths of a merged union."""
    low, high = sorted((Fraction(0), -delta))
    total, reached = Fraction(0), Fraction(0)
    for t in places:
        start, end = max(t + low, reached), min(t + high, Fraction(1))
        if end > start:
            total += end - start
            reached = end
    return total


@given(thresholds(), st.integers(-80, 80))
def test_flip_probability_upper_bound__holds_for_every_monotone_quantizer(places: list[Fraction], n: int) -> None:
    delta = Fraction(n, 64)
    exact = flipped_length(places, delta)
    bound = float(flip_probability_upper_bound(float(delta), levels=len(places) + 1, length=1.0))
    assert exact <= Fraction(bound)
    if 0 < bound < 1:
        record("flip_probability_upper_bound", *map(float, places), n, ratio=float(exact / Fraction(bound)))


@pytest.mark.parametrize("name", ["int4-row", "nf4-b64", "fp4-b64", "int2-row", "fp8-row"])
@given(shift=st.floats(-0.3, 0.3))
def test_flip_probability_upper_bound__holds_for_our_formats(name: str, shift: float) -> None:
    """On a fixed grid, weights uniform between its ends; codes that share a value count as two levels."""
    fmt = format_named(name)
    w = rng_for(name, shift).uniform(-1, 1, TRIALS).astype(np.float32).reshape(1, -1)
    grid = fit_grid(np.array([[1.0]], np.float32), fmt)
    before, after = (encode(x, grid, fmt) for x in (w, w + np.float32(shift)))
    bound = float(flip_probability_upper_bound(shift, levels=len(fmt.levels), length=2.0))
    # a threshold is off by roundings of float32, of which each of the codes has a few
    assert (before != after).mean() <= bound + hoeffding_radius(TRIALS) + len(fmt.levels) * 2.0**-22


def test_flip_probability_upper_bound__is_attained_by_a_uniform_grid() -> None:
    """15 levels, 14 thresholds, each half a step from the ends: |delta| up to half a step."""
    places = [Fraction(2 * k + 1, 28) for k in range(14)]
    for n in (1, -1):
        delta = Fraction(n, 28)
        exact = flipped_length(places, delta)
        assert exact == Fraction(14, 28)
        bound = Fraction(float(flip_probability_upper_bound(float(delta), levels=15, length=1.0)))
        assert exact <= bound <= exact * (1 + Fraction(U64) * 8)


def test_flip_probability_upper_bound__does_not_bind_a_rule_that_is_not_monotone() -> None:
    """The parity of the cell has two levels, one threshold by the count, and as many changes as there are cells."""
    w = (np.arange(1000) + 0.5) / 1000
    changed = (np.floor((w + 0.05) * 20) % 2 != np.floor(w * 20) % 2).mean()
    assert changed > 0.9
    assert float(flip_probability_upper_bound(0.05, levels=2, length=1.0)) < 0.06


def test_flip_probability_upper_bound__at_its_ends() -> None:
    got = flip_probability_upper_bound([0.0, -2.0, 0.1], levels=4, length=1.0)
    assert got.tolist()[:2] == [0.0, 1.0]
    assert flip_probability_upper_bound(5.0, levels=1, length=1.0) == 0
    for levels, length, delta, message in (
        (0, 1.0, 0.1, "levels must be at least 1"),
        (4, 0.0, 0.1, "length must be positive"),
        (4, math.inf, 0.1, "length must be positive"),
        (4, 1.0, math.nan, "delta must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            flip_probability_upper_bound(delta, levels=levels, length=length)


@st.composite
def random_values(draw: st.DrawFn) -> tuple[list[int], list[Fraction]]:
    """Draw ascending integer levels and probabilities of them. Shrinks to two levels."""
    levels = sorted(draw(st.sets(st.integers(-20, 20), min_size=2, max_size=6)))
    weights = draw(st.lists(st.integers(0, 9), min_size=len(levels), max_size=len(levels)))
    total = sum(weights)
    chances = [Fraction(k, total) for k in weights] if total else [Fraction(1), *[Fraction(0)] * (len(levels) - 1)]
    return levels, chances


@given(random_values())
def test_unbiased_variance_lower_bound__holds_for_every_law_on_the_levels(
    case: tuple[list[int], list[Fraction]],
) -> None:
    levels, chances = case
    mean = sum((p * k for p, k in zip(chances, levels, strict=True)), Fraction(0))
    variance = sum((p * k * k for p, k in zip(chances, levels, strict=True)), Fraction(0)) - mean**2
    bound = float(unbiased_variance_lower_bound(float(mean), [float(k) for k in levels]))
    # the mean rounds to half an ulp of 20, two differences, a product; gaps are at most 40
    assert Fraction(bound) <= variance + 40 * 64 * Fraction(U64)


@given(st.integers(0, 64), st.integers(1, 5))
def test_unbiased_variance_lower_bound__is_attained_by_the_two_neighbours(sixteenths: int, gap: int) -> None:
    levels = [0.0, float(gap), gap + 4.0]
    x = sixteenths / 64 * gap
    p = Fraction(x) / gap
    assert Fraction(float(unbiased_variance_lower_bound(x, levels))) == p * gap**2 - (p * gap) ** 2


@given(st.integers(-100, 100), st.sampled_from([0.25, 1.0, 2.0]))
def test_unbiased_variance_lower_bound__is_that_of_gating(n: int, step: float) -> None:
    """T7's survivor has the least variance of all unbiased ones, on the differences of its grid."""
    delta = n / 16 * step
    differences = np.arange(-8, 9) * step
    assert float(unbiased_variance_lower_bound(delta, differences)) == float(gated_variance(delta, step))


def test_unbiased_variance_lower_bound__refuses_a_mean_out_of_reach() -> None:
    with pytest.raises(ValueError, match="mean must be in"):
        unbiased_variance_lower_bound(1.5, [0.0, 1.0])
    with pytest.raises(ValueError, match="mean must be in"):
        unbiased_variance_lower_bound(math.nan, [0.0, 1.0])
    for levels in ([1.0], [1.0, 1.0], [0.0, math.inf], [[0.0, 1.0]]):
        with pytest.raises(ValueError, match="levels must be two or more ascending"):
            unbiased_variance_lower_bound(0.5, np.array(levels))
    assert unbiased_variance_lower_bound([0.0, 1.0], [0.0, 1.0]).tolist() == [0.0, 0.0]


def information(law: NDArray[Any], channel: NDArray[Any]) -> float:
    """Return I(delta; change) in nats, from P[delta] and P[change | delta]."""
    joint = law[:, None] * channel
    both = joint.sum(axis=0)
    terms = [x * math.log(x / (law[i] * both[j])) for (i, j), x in np.ndenumerate(joint) if x > 0]
    return math.fsum(terms)


@given(st.lists(st.tuples(st.integers(-16, 16), st.integers(1, 9)), min_size=1, max_size=6))
def test_code_information_upper_bound__is_above_the_information_of_gated_codes(updates: list[tuple[int, int]]) -> None:
    """Below one step, places uniform: a code moves by sign(delta) with probability |delta| / Delta."""
    delta = np.array([d / 16 for d, _ in updates])
    law = np.array([float(k) for _, k in updates])
    law /= law.sum()
    channel = np.stack([np.maximum(-delta, 0), 1 - np.abs(delta), np.maximum(delta, 0)], axis=1)
    flips = float(np.minimum(law @ np.abs(delta), 1.0))
    told = information(law, channel)
    bound = code_information_upper_bound(flips)
    assert told <= bound + 64 * U64
    record("code_information_upper_bound", *delta, *law, ratio=min(1.0, max(told, 0.0) / bound) if flips else None)


@given(st.lists(probabilities, min_size=1, max_size=6))
def test_code_information_upper_bound__adds_up_and_rises(flips: list[float]) -> None:
    whole = code_information_upper_bound(flips)
    parts = math.fsum(code_information_upper_bound(p) for p in flips)
    # each is rounded up by 17 roundings
    assert abs(whole - parts) <= 64 * U64 * (parts + 2.0**-1000)
    assert code_information_upper_bound(min(1.0, flips[0] + 0.01)) >= code_information_upper_bound(flips[0])
    assert whole <= len(flips) * math.log(3) * (1 + 64 * U64)


def test_code_information_upper_bound__by_hand() -> None:
    assert code_information_upper_bound(2 / 3) == pytest.approx(math.log(3), rel=64 * U64)
    assert code_information_upper_bound(1.0) == code_information_upper_bound(2 / 3)
    assert code_information_upper_bound(0.5) == pytest.approx(1.5 * math.log(2), rel=64 * U64)
    small = 2.0**-60
    assert code_information_upper_bound(small) == pytest.approx(small * (1 + 61 * math.log(2)), rel=64 * U64)
    assert code_information_upper_bound(0.0) <= 2.0**-1074
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="flip_probability must be in"):
            code_information_upper_bound(bad)


def test_unbiased_variance_lower_bound__is_below_what_nearest_rounding_pays_in_bias() -> None:
    """Round to nearest has no variance: it is biased. The levels of a decoded grid are those of the bound."""
    fmt = format_named("nf4-b64")
    grid = fit_grid(np.ones((1, 64), np.float32), fmt)
    levels = decode(np.arange(len(fmt.levels), dtype=np.int16)[None], grid, fmt)[0].astype(np.float64)
    middles = (levels[1:] + levels[:-1]) / 2
    got = unbiased_variance_lower_bound(middles, levels)
    assert np.allclose(got, np.diff(levels) ** 2 / 4, rtol=64 * U64, atol=0)
    assert all(a < b for a, b in combinations(levels.tolist(), 2))
