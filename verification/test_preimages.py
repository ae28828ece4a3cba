from __future__ import annotations

from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from unforgotten.theory.formats.names import Format, format_named
from unforgotten.theory.formats.reference import Grid, encode, fit_grid, to_blocks
from unforgotten.theory.geometry.preimages import LARGEST, Interval, _from_key, block_box, same_scale, weight_cells
from unforgotten.verification.chance import rng_for
from unforgotten.verification.domains.strategies import ALL_FORMAT_NAMES, Sample, samples
from unforgotten.verification.oracles import U32, Parameters, block_code, fit_block

RANGES = ("range", "min-max", "hqq")
TRIMS = (0.01, 0.1)  # of the width, at each end: margins that published attacks leave to be safe


def flat_count(s: Sample) -> int | None:
    return s.w.size if s.fmt.block == "flat" else None


def is_partial(s: Sample) -> bool:
    return s.fmt.block == "flat" and s.w.size % (s.fmt.block_size or 1) != 0


def all_cells(s: Sample) -> Interval:
    blocks = to_blocks(s.w, s.fmt)
    codes = np.broadcast_to(np.arange(len(s.fmt.levels)), (len(blocks), len(s.fmt.levels)))
    grid = fit_grid(blocks, s.fmt, count=flat_count(s))
    return weight_cells(codes, grid, s.fmt, partial=is_partial(s))


def exact_parameters(s: Sample, block: int) -> tuple[Parameters, bool]:
    blocks = to_blocks(s.w, s.fmt)
    partial = is_partial(s) and block == len(blocks) - 1
    weights = [Fraction(float(x)) for x in blocks[block]]
    tensor_absmax = Fraction(float(np.abs(s.w).max()))
    return fit_block(weights, s.fmt, partial=partial, tensor_absmax=tensor_absmax), partial


@given(samples(names=ALL_FORMAT_NAMES), st.data())
def test_weight_cells__are_sound_and_maximal_in_exact_arithmetic(s: Sample, data: st.DataObject) -> None:
    """The oracle gives both ends the code, and the next float32 outside another one."""
    cell = all_cells(s)
    block = data.draw(st.integers(0, len(cell.lower) - 1))
    code = data.draw(st.integers(0, len(s.fmt.levels) - 1))
    p, partial = exact_parameters(s, block)

    def code_of(w: np.float32) -> int:
        return block_code(Fraction(float(w)), p, s.fmt, partial=partial)

    ends = [x[block, code] for x in cell]
    if ends[0] <= ends[1]:
        assert [code_of(w) for w in ends] == [code, code]
        for w in (x[block, code] for x in cell.outer):
            assert not np.isfinite(w) or code_of(w) != code


@given(samples(names=ALL_FORMAT_NAMES))
def test_weight_cells__partition_the_float32_numbers(s: Sample) -> None:
    """In order, each interval starts one float32 after the last one, from -max to max."""
    cell = all_cells(s)
    for lower, upper in zip(*cell, strict=True):
        full = lower <= upper
        order = np.argsort(lower[full])
        low, high = lower[full][order], upper[full][order]
        assert low[0] == -LARGEST
        assert high[-1] == LARGEST
        assert np.array_equal(np.nextafter(high[:-1], LARGEST), low[1:])


@given(samples(names=ALL_FORMAT_NAMES))
def test_weight_cells__hold_the_weights_with_their_codes(s: Sample) -> None:
    blocks = to_blocks(s.w, s.fmt)
    grid = fit_grid(blocks, s.fmt, count=flat_count(s))
    codes = encode(blocks, grid, s.fmt, count=flat_count(s)).astype(int)
    cell = all_cells(s)
    lower, upper = (np.take_along_axis(x, codes, axis=1) for x in cell)
    assert (lower <= blocks).all()
    assert (blocks <= upper).all()


def test_weight_cells__are_empty_for_a_code_that_no_weight_has() -> None:
    """On a grid of scale 0 every weight is read as 0."""
    fmt = format_named("int4-g8")
    grid = Grid(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32))
    cell = weight_cells(np.arange(15)[None, :], grid, fmt)
    full = cell.lower <= cell.upper
    assert np.flatnonzero(full).tolist() == [7]
    assert cell.lower[full].tolist() == [-LARGEST]
    assert cell.upper[full].tolist() == [LARGEST]


def same_parameters(a: Grid, b: Grid) -> bool:
    """Those that make the codes."""
    a, b = a.encoder or a, b.encoder or b
    low, low_new = (np.zeros_like(g.scale) if g.low is None else g.low for g in (a, b))
    return bool(np.array_equal(a.scale, b.scale) and np.array_equal(a.zero, b.zero) and np.array_equal(low, low_new))


def keeps(blocks: NDArray[Any], s: Sample) -> bool:
    """Whether the blocks have the parameters and codes of the sample."""
    before, count = to_blocks(s.w, s.fmt), flat_count(s)
    grid, grid_new = fit_grid(before, s.fmt, count=count), fit_grid(blocks, s.fmt, count=count)
    codes = encode(before, grid, s.fmt, count=count)
    return same_parameters(grid, grid_new) and bool(np.array_equal(codes, encode(blocks, grid_new, s.fmt, count=count)))


def corners(box: Interval, w: NDArray[Any]) -> list[NDArray[Any]]:
    """The weights, both ends, and the points of smallest and of largest magnitude."""
    nearest = np.clip(np.zeros_like(w), *box)
    size = np.abs(np.stack(box))
    farthest = np.where(size[0] > size[1], *box)
    return [w, box.lower, box.upper, nearest, farthest]


@given(samples(names=ALL_FORMAT_NAMES), st.integers(0, 2**32))
def test_block_box__is_sound(s: Sample, seed: int) -> None:
    """Corners, random corners and random points of the box: same parameters, same codes."""
    blocks = to_blocks(s.w, s.fmt)
    box = block_box(blocks, s.fmt, count=flat_count(s))
    assert (box.lower <= blocks).all()
    assert (blocks <= box.upper).all()
    rng = rng_for(seed)
    lower, upper = (x.astype(np.float64) for x in box)
    inside = (lower + rng.uniform(size=lower.shape) * (upper - lower)).astype(np.float32)
    random = np.where(rng.uniform(size=lower.shape) < 0.5, *box)
    for point in (*corners(box, blocks), random, np.clip(inside, *box)):
        assert keeps(point, s)


def test_block_box__frees_an_absmax_that_another_cell_holds() -> None:
    """7.5 steps are clipped to 7 and may shrink to the cell of 7; -7.5 is the least weight of -8 and holds the scale."""
    w = np.array([[7.5, -7.5, 1, 0, 0, 0, 0, 0]], np.float32)
    box = block_box(w, format_named("int4-g8-ao"))
    assert (box.lower[0, 0], box.upper[0, 0]) == (np.nextafter(np.float32(6.5), np.float32(7)), 7.5)
    assert (box.lower[0, 1], box.upper[0, 1]) == (-7.5, -7.5)


@given(samples(names=[n for n in ALL_FORMAT_NAMES if n != "nvfp4"]), st.data())
def test_block_box__is_maximal(s: Sample, data: st.DataObject) -> None:
    """One ulp outside, at some corner of the others, a code or a parameter is another: or the range is left."""
    blocks = to_blocks(s.w, s.fmt)
    box = block_box(blocks, s.fmt, count=flat_count(s))
    at = tuple(data.draw(st.integers(0, n - 1)) for n in blocks.shape)
    outside = data.draw(st.sampled_from(box.outer))[at]
    if s.fmt.statistic in RANGES and (
        not blocks[at[0]].min() < outside < blocks[at[0]].max() or blocks[at] in blocks_ends(blocks, at[0])
    ):
        return
    if np.isfinite(outside):
        points = [x.copy() for x in corners(box, blocks)]
        for point in points:
            point[at] = outside
        assert not all(keeps(point, s) for point in points)


def blocks_ends(blocks: NDArray[Any], block: int) -> tuple[float, float]:
    return float(blocks[block].min()), float(blocks[block].max())


def test_block_box__pins_the_absmax_where_it_is_the_scale() -> None:
    fmt = format_named("nf4-b8")
    w = np.array([[0.1, -0.7, 0.3, 0.7, 0, 0.2, 0.5, -0.6]], np.float32)
    box = block_box(w, fmt)
    assert box.lower[0, 1] == box.upper[0, 1] == w[0, 1]
    assert box.upper[0, 3] == -w[0, 1]
    assert box.lower[0, 3] < w[0, 3]


def test_block_box__frees_the_absmax_within_a_binade_of_mxfp4() -> None:
    """absmax 5 has the code 4, so [3.5, 5] by code and [4, 8) by scale; a weight of code 6 may reach 8."""
    fmt = format_named("mxfp4-b8")
    w = np.array([[5.0, 1, 1, 1, 1, 1, 1, 1]], np.float32)
    box = block_box(w, fmt)
    assert (box.lower[0, 0], box.upper[0, 0]) == (4, 5)
    w[0, 0] = 7
    box = block_box(w, fmt)
    assert box.lower[0, 0] == np.nextafter(np.float32(5), LARGEST)
    assert box.upper[0, 0] == np.nextafter(np.float32(8), np.float32(0))


def test_block_box__keeps_the_sign_of_a_signed_absmax() -> None:
    """Q4_0: a weight of the other sign that came to the same magnitude first would turn the scale around."""
    fmt = format_named("q4_0")
    w = np.zeros((1, 32), np.float32)
    w[0, 0], w[0, 5], w[0, 9] = -7.75, 8, -7.75
    box = block_box(w, fmt)
    assert box.lower[0, 0] > -box.lower[0, 5]
    assert box.lower[0, 9] == -box.lower[0, 5]


@given(samples(names=[n for n in ALL_FORMAT_NAMES if format_named(n).statistic == "absmax"]))
def test_same_scale__is_around_the_statistic(s: Sample) -> None:
    statistic = np.abs(to_blocks(s.w, s.fmt)).max(axis=1, keepdims=True)
    low, high = same_scale(statistic, s.fmt, partial=is_partial(s))
    assert (low <= statistic).all()
    assert (statistic <= high).all()


def test_block_box__refuses_a_searched_scale() -> None:
    with pytest.raises(ValueError, match="statistic must be one of"):
        block_box(np.ones((1, 8), np.float32), format_named("hqq4-g8-opt"))


def real_width(fmt: Format, grid: Grid, codes: NDArray[Any]) -> NDArray[Any]:
    """Width of the interior cells in exact real arithmetic, in weight units."""
    thresholds = np.asarray(fmt.levels, np.float64)
    thresholds = (thresholds[1:] + thresholds[:-1]) / 2
    encoder = grid.encoder or grid
    return np.diff(thresholds)[codes - 1] * np.abs(encoder.scale.astype(np.float64))


@pytest.mark.parametrize("name", ["nf4-b64", "fp4-b64", "int4-g64", "q4_0", "q8_0", "mxfp4-b32", "nvfp4"])
def test_weight_cells__keep_more_volume_than_any_trim(name: str) -> None:
    """Kept width of a cell >= 1 - 12 u |end| / width: an ulp, a threshold and three roundings at each end.

    A trim keeps 1 - 2 t of each width, to the power of the number of weights. Cells around a subnormal are left out.
    """
    fmt = format_named(name)
    w = rng_for(name).normal(0, 0.02, (16, 256)).astype(np.float32)
    blocks = to_blocks(w, fmt)
    grid = fit_grid(blocks, fmt)
    codes = np.broadcast_to(np.arange(1, len(fmt.levels) - 1), (len(blocks), len(fmt.levels) - 2))
    cell = weight_cells(codes, grid, fmt)
    width, wanted = (cell.upper.astype(np.float64) - cell.lower), real_width(fmt, grid, codes)
    wide = wanted > 0  # the zero of FP4 has two codes
    end = np.maximum(np.abs(cell.lower), np.abs(cell.upper)).astype(np.float64)
    kept = width[wide] / wanted[wide]
    assert (kept >= 1 - 12 * U32 * end[wide] / wanted[wide]).all()
    assert kept.min() > 1 - 2 * min(TRIMS)


def test_from_key__of_0_is_positive_0() -> None:
    """Both zeros have the key 0, so an interval's end could be either; it is the one that prints as 0."""
    assert np.signbit(_from_key(np.array([0, 1, -1]))).tolist() == [False, False, True]


def test_weight_cells__hold_where_a_ratio_and_a_zero_point_overflow_together() -> None:
    """HQQ's zero point of a narrow block far from 0 has the size of its ratios: their sum can leave float32."""
    far, fmt = np.full((1, 8), 2.0**103, np.float32), format_named("hqq4-g8")
    grid = fit_grid(far, fmt)
    cell = weight_cells(encode(far, grid, fmt), grid, fmt)
    assert (cell.lower <= far).all()
    assert (far <= cell.upper).all()
