from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from unforgotten.theory.formats.names import Format, format_named
from unforgotten.theory.formats.reference import Grid, encode, fit_grid, from_blocks, quantize, round_trip, to_blocks
from unforgotten.verification.domains.strategies import (
    ALL_FORMAT_NAMES,
    FORMAT_NAMES,
    LIBRARY_FORMAT_NAMES,
    NORMAL_KINDS,
    Sample,
    in_normal_range,
    samples,
)
from unforgotten.verification.oracles import ETA32, MAX32, U32, BlockResult, quantize_block

NOT_PER_TENSOR = tuple(n for n in FORMAT_NAMES if "tensor" not in n)
SIGN_SYMMETRIC = (
    "int4-g8",
    "int2-g8",
    "int3-row",
    "int8-row",
    "int8-tensor",
    "llmint8-row",
    "fp8-row",
    "fp8-cast",
    "mxfp4-b8",
    "mxfp4-b8-ct",
    "nvfp4",
    "q4_0",
    "q5_0",
    "q8_0",
)
KEEPS_ZERO = tuple(n for n in ALL_FORMAT_NAMES if format_named(n).zero not in ("minimum", "float"))
SCALES_BY_TWO = (
    *FORMAT_NAMES,
    "int4-g8-ct",
    "int4-g8-ct-asym",
    "int4-g8-ao",
    "int4-g8-ao-asym",
    "fp8-row",
    "mxfp4-b8",
    "mxfp4-b8-ct",
    "nvfp4",
)


def partial_last(s: Sample) -> bool:
    return s.fmt.block == "flat" and s.w.size % (s.fmt.block_size or 1) != 0


def oracle(s: Sample) -> list[BlockResult]:
    blocks = to_blocks(s.w, s.fmt)
    last = len(blocks) - 1
    tensor_absmax = Fraction(float(np.abs(s.w).max()))
    return [
        quantize_block(
            [Fraction(float(x)) for x in block],
            s.fmt,
            partial=i == last and partial_last(s),
            tensor_absmax=tensor_absmax,
        )
        for i, block in enumerate(blocks)
    ]


def exact(x: NDArray[Any]) -> list[Fraction]:
    return [Fraction(float(v)) for v in x.ravel()]


def slack_of(s: Sample, scale: NDArray[Any]) -> NDArray[Any]:
    """Upper bound of the rounding in one weight's round trip, in the units of the weight, (n_blocks, block).

    In code units: the ratio has at most 3 roundings (scale, quotient or reciprocal, product), so it is off by
    3 u |v|; a threshold by u |v|; a subnormal scale or reciprocal by up to half an eta of its own. The value has at
    most 4 more (level minus zero, product, unit, and the unit's own constant): 4 u |Q|, and |Q| <= absmax (1 + 8 u).
    """
    blocks = np.abs(to_blocks(s.w, s.fmt)).astype(np.float64)
    largest = blocks.max(axis=1, keepdims=True)
    relative = 9 * U32 * (2 * largest)  # |v| scale and |Q|, both at most the range; 9 leaves second-order terms
    subnormal = (max(s.fmt.divisor, 1) + 2) * ETA32  # eta / 2 in the scale, times a code, times 2; the value's own
    reciprocal = ETA32 / 2 * largest * np.asarray(scale, np.float64)  # absmax > 2^126 only
    floor = 2 * s.fmt.floor  # below it a block is read as if its absmax were the floor
    lost = s.fmt.arithmetic == "multiply" and not s.fmt.floor  # LLM.int8: where 127 / absmax overflows, all is 0
    unread = np.where(lost & (largest < 2 * s.fmt.divisor / float(MAX32)), largest, 0.0)
    return relative + subnormal + reciprocal + unread + np.where(largest < s.fmt.floor, floor, 0.0)


@given(samples(names=ALL_FORMAT_NAMES))
def test_quantize__is_the_exact_oracle_bit_for_bit(s: Sample) -> None:
    codes, grid = quantize(s.w, s.fmt)
    expected = oracle(s)
    found = [r.parameters for r in expected]
    encoder = grid.encoder or grid
    low = (np.zeros_like(g.scale) if g.low is None else g.low for g in (grid, encoder))
    assert exact(grid.scale) == [p.read_scale for p in found]
    assert exact(next(low)) == [p.read_low for p in found]
    assert exact(next(low)) == [p.low for p in found]
    assert exact(encoder.scale) == [p.scale for p in found]
    assert exact(grid.zero) == exact(encoder.zero) == [p.zero for p in found]
    exact_codes = np.array([r.codes for r in expected], np.int16)
    assert np.array_equal(codes, from_blocks(exact_codes, s.w.shape, s.fmt))


@given(samples(names=ALL_FORMAT_NAMES))
def test_round_trip__is_the_exact_oracle_bit_for_bit(s: Sample) -> None:
    values = to_blocks(round_trip(s.w, s.fmt), s.fmt).ravel()
    expected = [v for r in oracle(s) for v in r.values]
    real = to_blocks(np.ones(s.w.shape), s.fmt).ravel() > 0
    assert [Fraction(float(v)) for v in values[real]] == [v for v, r in zip(expected, real, strict=True) if r]


@pytest.mark.parametrize("name", LIBRARY_FORMAT_NAMES)
@given(data=st.data())
def test_round_trip__of_each_library_is_the_exact_oracle(name: str, data: st.DataObject) -> None:
    s = data.draw(samples(names=[name]))
    expected = [v for r in oracle(s) for v in r.values]
    real = to_blocks(np.ones(s.w.shape), s.fmt).ravel() > 0
    got = to_blocks(round_trip(s.w, s.fmt), s.fmt).ravel()[real]
    assert exact(got) == [v for v, r in zip(expected, real, strict=True) if r]


@given(samples(names=FORMAT_NAMES))  # the libraries' sums and storage need more slack: below
@example(Sample(format_named("llmint8-row"), np.array([[1.82e-43]], np.float32)))  # 127 / absmax = inf
def test_round_trip__errs_by_at_most_half_a_step(s: Sample) -> None:
    blocks = to_blocks(s.w, s.fmt)
    codes, grid = quantize(s.w, s.fmt)
    levels = np.asarray(s.fmt.levels)
    unit = s.fmt.unit * grid.scale.astype(np.float64)
    below = np.diff(levels, prepend=levels[0])[to_blocks(codes, s.fmt).astype(int)] / 2
    above = np.diff(levels, append=levels[-1])[to_blocks(codes, s.fmt).astype(int)] / 2
    clipped = s.fmt.reach[1] - levels[-1]  # beyond the top level: 1 for "paper", 1/2 with a zero point
    error = to_blocks(round_trip(s.w, s.fmt), s.fmt).astype(np.float64) - blocks
    real = to_blocks(np.ones(s.w.shape), s.fmt) > 0
    half_step = np.maximum(np.maximum(below, above), clipped) * unit
    assert (np.abs(error) <= half_step + slack_of(s, grid.scale))[real].all()


NEARLY_NEAREST = tuple(n for n in LIBRARY_FORMAT_NAMES if n not in ("nvfp4", "fp8-cast") and not n.startswith("hqq"))


@given(samples(names=NEARLY_NEAREST))
def test_round_trip__of_a_library_errs_by_at_most_half_a_step(s: Sample) -> None:
    """Half a step or what is clipped, `slack_of`, the rounding of a sum with half or with a zero point, and storage.

    A float16 parameter is off by 2^-11 of itself, or 2^-25 where it is subnormal; the scale's error counts once for
    every level. A reciprocal that overflows is read as 0: blocks below 2^-120.
    """
    blocks, levels = to_blocks(s.w, s.fmt), np.asarray(s.fmt.levels)
    codes, grid = quantize(s.w, s.fmt)
    encoder = grid.encoder or grid
    step = np.abs(encoder.scale.astype(np.float64))
    index = to_blocks(codes, s.fmt).astype(int)
    below = np.diff(levels, prepend=levels[0])[index] / 2
    above = np.diff(levels, append=levels[-1])[index] / 2
    clipped = s.fmt.reach[1] - levels[-1]
    half_step = np.maximum(np.maximum(below, above), clipped) * step
    top = len(levels)
    sums = 2 * U32 * top * step
    stored = 0.0 if s.fmt.storage == "float32" else 2.0**-11
    low = 0.0 if encoder.low is None else np.abs(encoder.low.astype(np.float64))
    storage = stored * (top * step + low) + (2.0**-25 * (top + 1) if stored else 0.0)
    unread = 2.0**-120 if s.fmt.arithmetic == "reciprocal" else 0.0
    error = np.abs(to_blocks(round_trip(s.w, s.fmt), s.fmt).astype(np.float64) - blocks)
    real = to_blocks(np.ones(s.w.shape), s.fmt) > 0
    assert (error <= half_step + slack_of(s, encoder.scale) + sums + storage + unread)[real].all()


@given(samples(names=ALL_FORMAT_NAMES))
def test_encode__is_monotone_in_a_block(s: Sample) -> None:
    """Falling where the scale is negative."""
    blocks = to_blocks(s.w, s.fmt)
    grid = fit_grid(blocks, s.fmt)
    codes = encode(blocks, grid, s.fmt).astype(int)
    order = np.argsort(blocks, axis=1, kind="stable")
    steps = np.diff(np.take_along_axis(codes, order, axis=1), axis=1)
    assert (steps * np.where(grid.scale < 0, -1, 1) >= 0).all()


@given(samples(names=ALL_FORMAT_NAMES))
def test_encode__stays_inside_the_levels(s: Sample) -> None:
    codes, _ = quantize(s.w, s.fmt)
    assert codes.min() >= 0
    assert codes.max() < len(s.fmt.levels)


@given(samples(names=KEEPS_ZERO))
def test_round_trip__keeps_zero(s: Sample) -> None:
    assert (round_trip(s.w, s.fmt)[s.w == 0] == 0).all()


@given(samples(names=ALL_FORMAT_NAMES))
def test_from_blocks__undoes_to_blocks(s: Sample) -> None:
    assert np.array_equal(from_blocks(to_blocks(s.w, s.fmt), s.w.shape, s.fmt), s.w)


@given(samples(names=[n for n in ALL_FORMAT_NAMES if not format_named(n).whole_blocks]))
def test_fit_grid__ignores_padding(s: Sample) -> None:
    blocks = to_blocks(s.w, s.fmt)
    grid = fit_grid(blocks, s.fmt)
    wider = fit_grid(np.pad(blocks, ((0, 0), (0, 3))), s.fmt)
    assert np.array_equal(grid.scale, wider.scale)
    assert np.array_equal(grid.zero, wider.zero)


@given(samples(names=SIGN_SYMMETRIC))
def test_round_trip__mirrors_in_symmetric_formats(s: Sample) -> None:
    assert np.array_equal(round_trip(-s.w, s.fmt), -round_trip(s.w, s.fmt))


def test_fp4__does_not_mirror_at_a_tie() -> None:
    """The exception: a tie goes to the lower level, so the mirror image of a tie goes to the larger magnitude."""
    fmt = format_named("fp4-b8")
    w = np.array([1.0, fmt.thresholds[10]], np.float32)
    assert not np.array_equal(round_trip(-w, fmt), -round_trip(w, fmt))


@given(samples(names=SCALES_BY_TWO, kinds=NORMAL_KINDS), st.integers(-20, 20))
def test_quantize__scales_with_powers_of_two(s: Sample, exponent: int) -> None:
    factor = np.float32(2.0**exponent)
    with np.errstate(over="ignore"):  # inf is out of the normal range, and not tested
        scaled = Sample(s.fmt, s.w * factor) if in_normal_range(s) else s
    if not in_normal_range(scaled):
        factor, scaled = np.float32(1), s
    assert np.array_equal(quantize(scaled.w, s.fmt)[0], quantize(s.w, s.fmt)[0])
    assert np.array_equal(round_trip(scaled.w, s.fmt), round_trip(s.w, s.fmt) * factor)


@given(samples(whole_blocks=True), st.data())
def test_quantize__permutes_with_the_blocks(s: Sample, data: st.DataObject) -> None:
    blocks = to_blocks(s.w, s.fmt)
    order = data.draw(st.permutations(range(len(blocks))))
    together = round_trip(s.w, s.fmt)
    shuffled = round_trip(from_blocks(blocks[order], s.w.shape, s.fmt), s.fmt)
    assert np.array_equal(to_blocks(shuffled, s.fmt), to_blocks(together, s.fmt)[order])


@given(samples(names=NOT_PER_TENSOR, whole_blocks=True))
def test_quantize__works_row_by_row(s: Sample) -> None:
    """Concatenated tensors quantize to concatenated codes, where no block straddles the seam."""
    rows = [quantize(row[None, :], s.fmt)[0] for row in s.w]
    assert np.array_equal(quantize(s.w, s.fmt)[0], np.concatenate(rows))


@pytest.mark.parametrize("name", ALL_FORMAT_NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_quantize__refuses_weights_that_are_not_finite_float32(name: str, bad: float) -> None:
    w = np.ones(32)
    w[1] = bad
    with pytest.raises(ValueError, match="finite"):
        quantize(w, format_named(name))


@pytest.mark.parametrize("name", [n for n in ALL_FORMAT_NAMES if format_named(n).whole_blocks])
def test_quantize__refuses_part_of_a_block_where_padding_would_matter(name: str) -> None:
    with pytest.raises(ValueError, match="whole blocks"):
        quantize(np.ones((2, 36 + 1)), format_named(name))


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q8_0"])
def test_quantize__refuses_parameters_beyond_float16(name: str) -> None:
    w = np.zeros(32, np.float32)
    w[3] = 1e30
    with pytest.raises(ValueError, match="finite float16"):
        quantize(w, format_named(name))


def test_quantize__refuses_a_minimum_beyond_float16() -> None:
    w = np.full(32, -1e6, np.float32)
    with pytest.raises(ValueError, match="finite float16"):
        quantize(w, format_named("q5_1"))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_quantize__refuses_empty_tensors(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        quantize(np.ones(shape), format_named("int4-row"))


def test_quantize__refuses_a_range_beyond_float32() -> None:
    with pytest.raises(ValueError, match="range of a block"):
        quantize(np.array([3e38, -3e38], np.float32), format_named("int4-row-asym"))


@pytest.mark.parametrize("bits", range(2, 9))
def test_round_trip__overflows_only_where_the_scale_was_rounded_up(bits: int) -> None:
    """The one place where a finite weight has an infinite value: top * scale > the largest float32."""
    largest = float(np.finfo(np.float32).max)
    value = round_trip(np.array([largest], np.float32), format_named(f"int{bits}-row"))[0]
    assert np.isinf(value) == (bits in (6, 8))


def test_asymmetric__keeps_zero_on_a_subnormal_range() -> None:
    """10 eta / 7 rounds down to 1 eta, so the zero point would be 10 of 7 codes if it were not clipped."""
    fmt = format_named("int3-g8-asym")
    w = np.array([-10 * ETA32, 0.0], np.float32)
    assert round_trip(w, fmt).tolist() == [-7 * ETA32, 0.0]


def test_flat_partial_block__stores_the_floor_of_bitsandbytes() -> None:
    fmt = format_named("nf4-b8")
    grid = quantize(np.zeros(12, np.float32), fmt)[1]
    assert grid.scale.ravel().tolist() == [0.0, float(np.float32(1e-38))]


def test_encode__on_a_foreign_grid_clips() -> None:
    fmt: Format = format_named("int4-row")
    grid = Grid(np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32))
    v = np.array([[-1e30, -7.6, 7.6, 1e30]], np.float32)
    assert encode(v, grid, fmt).tolist() == [[0, 0, 14, 14]]
