from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from unforgotten.theory.formats.names import Format, format_named
from unforgotten.theory.formats.reference import decode, encode, fit_grid, to_blocks
from unforgotten.theory.geometry.drift import (
    certified_codes,
    drift_factor,
    keeps_code,
    scale_drift_upper_bound,
    unflipped_update_upper_bound,
    value_rounding_upper_bound,
)
from unforgotten.verification.chance import rng_for
from unforgotten.verification.domains.strategies import Pair, pairs
from unforgotten.verification.oracles import U64

NAMES = (
    "int4-g8",
    "int2-g8",
    "int3-row",
    "int8-row",
    "int8-tensor",
    "int4-g8-paper",
    "int8-tensor-paper",
    "nf4-b8",
    "fp4-b8",
    "nf4-b5",
    "llmint8-row",
    "int2-g8-asym",
    "int4-g8-asym",
    "int8-tensor-asym",
)
ABSMAX = tuple(n for n in NAMES if not n.endswith("asym"))


def before_and_after(pair: Pair) -> tuple[NDArray[Any], NDArray[Any], int | None]:
    count = pair.w.size if pair.fmt.block == "flat" else None
    return to_blocks(pair.w, pair.fmt), to_blocks(pair.w_new, pair.fmt), count


def exact_statistic(block: NDArray[Any], fmt: Format) -> Fraction:
    xs = [Fraction(x) for x in block.astype(np.float64).tolist()]
    if fmt.statistic == "absmax":
        return max(abs(x) for x in xs)
    return max([*xs, Fraction(0)]) - min([*xs, Fraction(0)])


@given(pairs(names=NAMES))
def test_scale_drift_upper_bound__bounds_the_exact_scales(pair: Pair) -> None:
    """Rationals, block by block: no rounding of the scale in it."""
    before, after, _ = before_and_after(pair)
    divisor = 1 if pair.fmt.arithmetic == "multiply" else Fraction(pair.fmt.divisor)
    for old, new in zip(before, after, strict=True):
        delta = [abs(Fraction(b) - Fraction(a)) for a, b in zip(old.tolist(), new.tolist(), strict=True)]
        drift = abs(exact_statistic(new, pair.fmt) - exact_statistic(old, pair.fmt)) / divisor
        # delta_max as the nearest double: below half an ulp, which the bound's own rounding up need not cover
        delta_max = np.nextafter(float(max(delta)), np.inf)
        assert drift <= Fraction(float(scale_drift_upper_bound(np.array(delta_max), pair.fmt)))


@pytest.mark.parametrize("name", ["int4-g8", "nf4-b8", "llmint8-row", "int4-g8-asym", "int4-g8-ct"])
def test_scale_drift_upper_bound__is_attained(name: str) -> None:
    """Both ends move outward by 1/8; absmax feels one of them, a range both."""
    fmt = format_named(name)
    w = np.array([[-1.0, 0.5, 0.25, 1.0, 0, 0, 0, 0]], np.float32)
    delta = np.array([[-0.125, 0, 0, 0.125, 0, 0, 0, 0]], np.float32)
    scales = [fit_grid(to_blocks(x, fmt), fmt).scale.astype(np.float64) for x in (w, w + delta)]
    bound = float(scale_drift_upper_bound(np.array(0.125), fmt))
    slack = 2.0**-23 * float(scales[1].max())  # two float32 scales
    assert abs(float(np.abs(scales[1] - scales[0]).max()) - bound) <= slack


@given(pairs(names=NAMES))
def test_certified_codes__do_not_flip(pair: Pair) -> None:
    """Soundness in the kernel's float32, adaptive grids, hard tensors: ties, outliers, subnormals, huge ranges."""
    before, after, count = before_and_after(pair)
    certified = certified_codes(pair.w, pair.w_new, pair.fmt)
    codes = [encode(x, fit_grid(x, pair.fmt, count=count), pair.fmt, count=count) for x in (before, after)]
    assert (codes[0] == codes[1])[certified].all()


@pytest.mark.parametrize("name", [*NAMES, "int4-g8-ao", "fp8-row", "mxfp4-b8", "fp8-cast", "nvfp4"])
def test_certified_codes__certify_most_of_what_stays(name: str) -> None:
    """Not vacuous: of the codes that stay under a small update, most are certified; and none that flips."""
    fmt = format_named(name)
    rng = rng_for("certify", name)
    w = rng.normal(0, 0.02, (40, 80)).astype(np.float32)
    w_new = (w + 1e-5 * rng.choice([-1, 1], w.shape)).astype(np.float32)
    before, after = to_blocks(w, fmt), to_blocks(w_new, fmt)
    same = encode(before, fit_grid(before, fmt), fmt) == encode(after, fit_grid(after, fmt), fmt)
    certified = certified_codes(w, w_new, fmt)
    assert not (certified & ~same).any()
    assert certified.sum() > 0.9 * same.sum()


@pytest.mark.parametrize("name", ["hqq4-g8", "q4_1", "int4-g8-ct-asym", "q4_0"])
def test_certified_codes__refuse_other_arithmetics(name: str) -> None:
    w = np.ones((1, 32), np.float32)
    with pytest.raises(ValueError, match="format must round w / scale in float32"):
        certified_codes(w, w, format_named(name))


def test_certified_codes__leave_a_changed_zero_point_alone() -> None:
    fmt = format_named("int4-tensor-asym")
    w = np.array([[-0.99, 0.1, 1.0]], np.float32)
    moved = np.array([[-1.01, 0.1, 1.0]], np.float32)
    assert fit_grid(w, fmt).zero != fit_grid(moved, fmt).zero
    assert not certified_codes(w, moved, fmt).any()
    assert certified_codes(w, w, fmt).any()


def test_certified_codes__refuse_two_shapes() -> None:
    with pytest.raises(ValueError, match="one shape"):
        certified_codes(np.ones((1, 2)), np.ones((2, 1)), format_named("int4-row"))


quarters = st.integers(-64, 64).map(lambda n: n / 4)


@given(
    st.lists(quarters, min_size=1, max_size=6, unique=True),
    quarters,
    quarters,
    st.sampled_from([0.5, 1.0, 2.0]),
    st.integers(-2, 2).map(lambda n: 1 + n / 8),
)
def test_keeps_code__is_the_strict_inequality_in_rationals(
    thresholds: list[float], w: float, delta: float, scale: float, drift: float
) -> None:
    """On quarters every operation but the quotient by s' is exact, so ties are ties: `<` and not `<=`, but for slack."""
    thresholds = sorted(thresholds)
    exact_w, exact_delta, s = Fraction(w), Fraction(delta), Fraction(scale)
    s_new = s * Fraction(drift)
    v, v_new = exact_w / s, (exact_w + exact_delta) / s_new
    room = min(abs(v - Fraction(t)) for t in thresholds)
    moved = (abs(exact_delta) + abs(v) * abs(s_new - s)) / s_new
    got = bool(
        keeps_code(
            np.array([[w]]),
            np.array([[delta]]),
            (np.array([[scale]]), np.array([[float(s_new)]])),
            np.array(thresholds),
        )[0, 0]
    )
    slack = 16 * Fraction(U64) * (abs(v) + moved + room) + Fraction(2) ** -140
    if got:
        assert moved < room
        crossed = [t for t in thresholds if (v < t) != (v_new < t) or (v <= t) != (v_new <= t)]
        assert not crossed
    else:
        assert moved + slack >= room


def test_keeps_code__is_sharp() -> None:
    """Drift and update that conspire reach the threshold exactly at equality: the condition cannot be weakened."""
    s, s_new, w, t = 1.0, 0.75, 1.0, 2.0
    delta = t * s_new - w  # lands on the threshold
    assert abs(delta) + abs(w / s) * abs(s_new - s) == s_new * (t - w)
    ends = (np.array([[s]]), np.array([[s_new]]))
    just_less = np.array([[delta * (1 - 2.0**-40)]])
    assert not keeps_code(np.array([[w]]), np.array([[delta]]), ends, np.array([t])).any()
    assert keeps_code(np.array([[w]]), just_less, ends, np.array([t])).all()


def test_keeps_code__grows_stricter_with_the_kernel_error() -> None:
    w, delta = np.array([[1.0]]), np.array([[0.25]])
    ones = (np.ones((1, 1)), np.ones((1, 1)))
    assert keeps_code(w, delta, ones, np.array([1.5])).all()
    assert not keeps_code(w, delta, ones, np.array([1.5]), relative_error=0.25).any()


def test_keeps_code__refuses_a_scale_of_0_and_no_threshold() -> None:
    w, one, zero = np.ones((1, 1)), np.ones((1, 1)), np.zeros((1, 1))
    with pytest.raises(ValueError, match="scales must be positive"):
        keeps_code(w, w, (one, zero), np.array([1.0]))
    with pytest.raises(ValueError, match="thresholds must hold"):
        keeps_code(w, w, (one, one), np.array([]))


@given(pairs(names=NAMES))
def test_unflipped_update_upper_bound__bounds_what_moves_without_a_flip(pair: Pair) -> None:
    """Real kernels, adaptive grids: equal code and equal zero point, whatever the other codes of the block do."""
    before, after, count = before_and_after(pair)
    grids = [fit_grid(x, pair.fmt, count=count) for x in (before, after)]
    codes = [encode(x, g, pair.fmt, count=count) for x, g in zip((before, after), grids, strict=True)]
    values = [decode(k, g, pair.fmt).astype(np.float64) for k, g in zip(codes, grids, strict=True)]
    delta_max = np.abs(after.astype(np.float64) - before).max(axis=1, keepdims=True)
    # an empty block's floor of 1e-38 (partial blocks of bitsandbytes) only brings two scales nearer
    bound = unflipped_update_upper_bound(delta_max, pair.fmt)
    largest = np.sum([np.abs(v).max(axis=1, keepdims=True) for v in values], axis=0)
    same = (codes[0] == codes[1]) & (grids[0].zero == grids[1].zero)
    moved = np.abs(values[1] - values[0])
    assert (moved <= bound + value_rounding_upper_bound(largest, pair.fmt))[same].all()


def test_unflipped_update_upper_bound__one_factor_for_all_formats_is_false() -> None:
    """|D_i| <= max|delta| fails on a range (`theory/README.md#t2`): zero point and codes stay, the top level moves by 2 max|delta|."""
    fmt = format_named("int4-tensor-asym")
    w = np.array([[-0.25, 0.1, 15.0]], np.float32)  # zero point 0: -low / scale < 1/2
    moved = w + np.array([[-0.125, 0, 0.125]], np.float32)
    grids = [fit_grid(x, fmt) for x in (w, moved)]
    codes = [encode(x, g, fmt) for x, g in zip((w, moved), grids, strict=True)]
    assert (codes[0] == codes[1]).all()
    assert grids[0].zero == grids[1].zero == 0
    d = [decode(k, g, fmt).astype(np.float64) for k, g in zip(codes, grids, strict=True)]
    slack = float(value_rounding_upper_bound(np.array(32.0), fmt))
    assert abs(float(np.abs(d[1] - d[0]).max()) - 2 * 0.125) <= slack
    assert float(unflipped_update_upper_bound(np.array(0.125), fmt)) >= 0.25


def test_unflipped_update_upper_bound__needs_an_equal_zero_point() -> None:
    """Equal codes, another zero point: the value jumps by nearly a whole step for an update of a hundredth of it."""
    fmt = format_named("int4-tensor-asym")
    w = np.array([[-0.999, 1.0]], np.float32)
    moved = np.array([[-1.001, 1.0]], np.float32)
    grids = [fit_grid(x, fmt) for x in (w, moved)]
    codes = [encode(x, g, fmt) for x, g in zip((w, moved), grids, strict=True)]
    assert (codes[0] == codes[1]).all()
    assert grids[0].zero != grids[1].zero
    d = [decode(k, g, fmt).astype(np.float64) for k, g in zip(codes, grids, strict=True)]
    assert float(np.abs(d[1] - d[0]).max()) > 0.1 > 10 * 0.002


def test_unflipped_update_upper_bound__is_attained_by_the_end_level() -> None:
    fmt = format_named("int4-tensor")
    w = np.array([[-7.0, 1.0]], np.float32)
    moved = np.array([[-7.5, 1.0]], np.float32)
    grids = [fit_grid(x, fmt) for x in (w, moved)]
    codes = [encode(x, g, fmt) for x, g in zip((w, moved), grids, strict=True)]
    assert (codes[0] == codes[1]).all()
    d = [decode(k, g, fmt).astype(np.float64) for k, g in zip(codes, grids, strict=True)]
    slack = float(value_rounding_upper_bound(np.array(14.5), fmt))
    assert abs(float(np.abs(d[1] - d[0]).max()) - 0.5) <= slack


def test_unflipped_update_upper_bound__is_exceeded_where_levels_pass_the_divisor() -> None:
    """compressed-tensors' int4 has a level -8 at a divisor of 7.5: factor 16/15, attained by no absmax but by ties."""
    ct = float(unflipped_update_upper_bound(np.array(1.0), format_named("int4-g8-ct")))
    assert 16 / 15 <= ct <= 16 / 15 * (1 + 8 * U64)
    for name in ABSMAX:
        own = float(unflipped_update_upper_bound(np.array(1.0), format_named(name)))
        assert 1 <= own <= 1 + 8 * U64


@pytest.mark.parametrize("name", ["mxfp4-b8", "q4_0", "nvfp4", "hqq4-g8", "q4_1", "fp8-cast"])
def test_drift_factor__refuses_scales_that_jump(name: str) -> None:
    with pytest.raises(ValueError, match="format must scale by absmax or range / c"):
        drift_factor(format_named(name))


def test_drift_factor__refuses_a_scale_that_is_stored_in_float16() -> None:
    for name in ("int4-g8", "int4-g8-asym"):
        with pytest.raises(ValueError, match="format must scale by absmax or range / c"):
            drift_factor(replace(format_named(name), storage="float16"))


@pytest.mark.parametrize("bound", [scale_drift_upper_bound, unflipped_update_upper_bound])
def test_drift__refuses_negative_sizes(bound: Any) -> None:
    for bad in (-1.0, np.nan):
        with pytest.raises(ValueError, match="delta_max must be non-negative"):
            bound(np.array(bad), format_named("int4-row"))
