from __future__ import annotations

import math
from itertools import chain
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from unforgotten.theory.geometry.dead_zone import (
    BINADES,
    FROZEN_SHARE,
    MIN_WEIGHTS,
    SIGNIFICANT_BITS,
    BinadeCounts,
    add_binades,
    count_binades,
    find_dead_zone,
    frozen_exponent,
)
from unforgotten.verification.chance import rng_for
from unforgotten.verification.domains.strategies import plain_values
from unforgotten.verification.oracles import U32

KINDS: dict[str, Any] = {
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}
NARROW = tuple(KINDS)
SMALLEST_NORMAL_EXPONENT = {"bfloat16": -126, "float16": -14, "float8_e4m3fn": -6, "float8_e5m2": -14}
BEYOND = {"bfloat16": 0x7F80, "float16": 0x7C00, "float8_e4m3fn": 0x7F, "float8_e5m2": 0x7C}
FIRST_BEYOND = {  # the value that the pattern after the largest number would have
    "bfloat16": 2.0**128,
    "float16": 2.0**16,
    "float8_e4m3fn": 480.0,
    "float8_e5m2": 2.0**16,
}
ETAS = sorted(
    {
        *chain.from_iterable(
            (2.0**k, math.nextafter(2.0**k, 0), math.nextafter(2.0**k, 1), 0.75 * 2.0**k)
            for k in (-140, -135, -133, -127, -60, *range(-30, 3))
        ),
        *(1e-7, 1e-6, 3e-6, 1e-5, 3e-5, 5e-5, 1e-4, 1e-3),
    }
)


def lattice(dtype: str) -> NDArray[Any]:
    """Every finite number >= 0 of the dtype, ascending, in float64; the index is its bit pattern."""
    kind = np.dtype(KINDS[dtype])
    patterns = np.arange(BEYOND[dtype], dtype={1: np.uint8, 2: np.uint16}[kind.itemsize])
    exact = patterns.view(kind).astype(np.float64)
    assert (np.diff(exact) > 0).all()
    return np.asarray(exact)


def moves(w: NDArray[Any], eta: float, dtype: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Whether w + eta and w - eta, rounded once to nearest even, differ from w: (away from 0, toward 0).

    Exact in float64: gaps are powers of two, eta is compared with half of them, and a tie moves an odd pattern.
    """
    odd = np.arange(len(w)) % 2 == 1
    gap_up = np.diff(w, append=FIRST_BEYOND[dtype])
    gap_down = np.diff(w, prepend=-w[1])  # below 0 lies the mirror image
    up, down = ((eta > gap / 2) | ((eta == gap / 2) & odd) for gap in (gap_up, gap_down))
    return up, down


@pytest.mark.parametrize("dtype", NARROW)
def test_frozen_exponent__freezes_every_weight_above_exhaustively(dtype: str) -> None:
    w = lattice(dtype)
    for eta in ETAS:
        edge = 2.0 ** frozen_exponent(eta, dtype)
        up, down = moves(w, eta, dtype)
        assert not up[w >= edge].any()
        assert not down[w > edge].any()


@pytest.mark.parametrize("dtype", NARROW)
def test_frozen_exponent__excepts_the_power_of_two_exactly_as_stated(dtype: str) -> None:
    """|w| = 2^e moves toward 0 iff eta > 2^(e-p) / 2, above the smallest normal number; else it is frozen."""
    w = lattice(dtype)
    seen = set()
    for eta in ETAS:
        e = frozen_exponent(eta, dtype)
        at_edge = np.flatnonzero(w == 2.0**e)
        if not at_edge.size:  # the edge is below the smallest number or above the largest
            continue
        stated = eta > 2.0 ** (e - SIGNIFICANT_BITS[dtype]) / 2 and e > SMALLEST_NORMAL_EXPONENT[dtype]
        assert moves(w, eta, dtype)[1][at_edge[0]] == stated
        seen.add(stated)
    assert seen == {True, False}


@pytest.mark.parametrize("dtype", NARROW)
def test_frozen_exponent__is_the_smallest_exhaustively(dtype: str) -> None:
    """One binade lower every odd weight moves away from 0, and every weight if eta is above half an ulp."""
    w = lattice(dtype)
    odd = np.arange(len(w)) % 2 == 1
    checked = 0
    for eta in ETAS:
        e = frozen_exponent(eta, dtype)
        below = (w >= 2.0 ** (e - 1)) & (w < 2.0**e)
        if e - 1 < SMALLEST_NORMAL_EXPONENT[dtype] or not below.any():
            continue
        up, _ = moves(w, eta, dtype)
        assert up[below & odd].all()
        assert up[below].all() == (eta > 2.0 ** (e - 1 - SIGNIFICANT_BITS[dtype]))
        checked += 1
    smallest = 2.0 ** (SMALLEST_NORMAL_EXPONENT[dtype] - SIGNIFICANT_BITS[dtype])  # half an ulp
    assert checked == sum(smallest <= eta < w[-1] - w[-2] for eta in ETAS) > 40


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("eta", [1e-5, 2.0**-14, 3e-5, 2.0**-9, 0.75 * 2.0**-6])
def test_moves__agrees_with_the_cast_in_software(dtype: str, eta: float) -> None:
    """A second method: numpy and ml_dtypes round the sum. Where float32 rounds too, it must not meet a tie."""
    w = lattice(dtype)
    kind = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[dtype]
    for sign, moved in zip((1, -1), moves(w, eta, dtype), strict=True):
        total = w + sign * eta
        if dtype == "bfloat16":  # ml_dtypes rounds a float64 to float32 first
            keep = total.astype(np.float32).astype(np.float64) == total
            if math.frexp(eta)[0] != 0.5:  # no power of two: a sum is further off a tie than float32 rounds
                gap = np.diff(w, append=2.0**128)
                keep |= np.abs(eta - gap / 2) > 2 * U32 * w
        else:
            keep = w + eta < 65520  # beyond that numpy returns inf, and says so
        rounded = total[keep].astype(np.float32 if dtype == "bfloat16" else np.float64).astype(kind)
        assert np.array_equal(rounded.astype(np.float64) != w[keep], moved[keep])
        assert keep.sum() > len(w) // 40


def test_frozen_exponent__needs_a_margin_where_float32_adds_first() -> None:
    """The exception in the docstring: two roundings. Below 2^(e-p) - 2^(e-24) it holds again, for every weight."""
    p = SIGNIFICANT_BITS["bfloat16"]
    w = lattice("bfloat16")
    above = w[(w > 1) & (w < 2.0**20)]  # the sums below are exact in float64
    margin = 2.0**-p - 2.0**-24

    def moved_in_float32(eta: float) -> bool:
        assert frozen_exponent(eta, "bfloat16") == 0
        sums = (above + eta).astype(np.float32).astype(ml_dtypes.bfloat16)
        return bool((sums.astype(np.float64) != above).any())

    assert moved_in_float32(2.0**-p - 2.0**-32)
    assert moved_in_float32(margin)
    assert not moved_in_float32(margin - 2.0**-32)


@given(st.floats(1e-300, 1e300), st.sampled_from(sorted(SIGNIFICANT_BITS)))
def test_frozen_exponent__is_the_smallest_by_the_formula(eta: float, dtype: str) -> None:
    half_ulp = math.ldexp(1.0, frozen_exponent(eta, dtype) - SIGNIFICANT_BITS[dtype])
    assert half_ulp / 2 <= eta < half_ulp


@given(st.floats(1e-300, 1e300), st.floats(1e-300, 1e300))
def test_frozen_exponent__is_monotone_and_shifts_with_the_precision(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert frozen_exponent(low, "bfloat16") <= frozen_exponent(high, "bfloat16")
    assert frozen_exponent(a, "float32") - frozen_exponent(a, "bfloat16") == 24 - 8


def test_frozen_exponent__is_minus_8_for_the_published_setting() -> None:
    assert frozen_exponent(1e-5, "bfloat16") == -8


@pytest.mark.parametrize("eta", [0.0, -1e-5, math.inf, math.nan])
def test_frozen_exponent__refuses_other_sizes(eta: float) -> None:
    with pytest.raises(ValueError, match="eta must be positive and finite"):
        frozen_exponent(eta, "bfloat16")


def test_frozen_exponent__refuses_other_dtypes() -> None:
    with pytest.raises(ValueError, match="dtype must be one of"):
        frozen_exponent(1e-5, "int8")


weights = hnp.arrays(
    np.float32,
    st.integers(1, 30),
    elements=st.one_of(plain_values(), st.floats(width=32, allow_nan=False, allow_infinity=False)),
)


@given(weights, st.data())
def test_count_binades__is_the_count_one_by_one(w: NDArray[Any], data: st.DataObject) -> None:
    moved = data.draw(hnp.arrays(bool, w.shape))
    w_new = np.where(moved, np.nextafter(w, np.float32(0)) + (w == 0), w)
    counts, moves_counted = dict.fromkeys(BINADES, 0), dict.fromkeys(BINADES, 0)
    for x, m in zip(w.tolist(), moved.tolist(), strict=True):
        e = BINADES[0] if x == 0 else min(max(math.frexp(x)[1] - 1, BINADES[0]), BINADES[-1])
        counts[e] += 1
        moves_counted[e] += m
    expected = BinadeCounts(tuple(counts.values()), tuple(moves_counted.values()))
    assert count_binades(w, w_new) == expected


@given(weights, weights)
def test_add_binades__is_the_count_of_the_concatenation(a: NDArray[Any], b: NDArray[Any]) -> None:
    parts = [count_binades(x, x * np.float32(0.5)) for x in (a, b)]
    both = np.concatenate([a, b])
    assert add_binades(parts) == count_binades(both, both * np.float32(0.5))


def trained(lr: float, *, dtype: str, steps: int = 20) -> BinadeCounts:
    """Weights of std 0.02 under sign steps of size lr, rounded to the dtype after every step."""
    rng = rng_for("trained", lr, dtype)
    kind = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}[dtype]
    start = (0.02 * rng.normal(size=50_000)).astype(np.float32).astype(kind).astype(np.float32)
    w = start
    sign = rng.choice([-1.0, 1.0], size=w.shape).astype(np.float32)
    for _ in range(steps):
        w = (w + np.float32(lr) * sign).astype(kind).astype(np.float32)
    return count_binades(start, w)


@pytest.mark.parametrize("lr", [5e-6, 1e-5, 2e-5, 3e-5])
def test_find_dead_zone__finds_the_edge_and_the_step_size(lr: float) -> None:
    zone = find_dead_zone(trained(lr, dtype="bfloat16"), "bfloat16")
    assert zone.detected
    assert zone.threshold == 2.0 ** frozen_exponent(lr, "bfloat16")
    low, high = zone.lr_estimate
    assert low <= lr < high


def test_find_dead_zone__finds_none_in_float32() -> None:
    zone = find_dead_zone(trained(1e-5, dtype="float32"), "float32")
    assert not zone.detected
    assert math.isnan(zone.threshold)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_find_dead_zone__finds_none_where_nothing_or_everything_moved(share: float) -> None:
    w = 0.02 * rng_for("flat", share).normal(size=20_000).astype(np.float32)
    assert not find_dead_zone(count_binades(w, w * np.float32(1 + share)), "bfloat16").detected


def test_find_dead_zone__ignores_binades_of_few_weights() -> None:
    few = np.full(MIN_WEIGHTS - 1, 1.0, np.float32)
    assert not find_dead_zone(count_binades(few, few), "bfloat16").detected


def test_find_dead_zone__calls_a_binade_of_the_fewest_weights_frozen_up_to_four_that_moved() -> None:
    """FROZEN_SHARE of MIN_WEIGHTS is 4: fewer weights would leave less than that to be told from none."""
    assert round(FROZEN_SHARE * 100) * MIN_WEIGHTS == 4 * 100
    weights, moved = [0] * len(BINADES), [0] * len(BINADES)
    low, high = BINADES.index(-9), BINADES.index(-8)
    weights[low] = moved[low] = weights[high] = MIN_WEIGHTS
    for few, found in ((4, True), (5, False)):
        moved[high] = few
        assert find_dead_zone(BinadeCounts(tuple(weights), tuple(moved)), "bfloat16").detected is found
