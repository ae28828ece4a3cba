from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from unforgotten.theory.formats.names import Format, format_named
from unforgotten.theory.formats.reference import Grid, code_units, encode, fit_grid, to_blocks
from unforgotten.theory.geometry.cells import cells, position
from unforgotten.verification.domains.strategies import ALL_FORMAT_NAMES, TILED_NAMES, Sample, formats, samples
from unforgotten.verification.oracles import ETA32, U32, midpoints


def unit_grid(fmt: Format, *, zero: float = 0.0) -> Grid:
    """The grid on which a weight is its own code unit, in the arithmetic of the kernel: `w * (127 / 127)`."""
    scale = fmt.divisor if fmt.arithmetic == "multiply" else 1.0
    return Grid(np.full((1, 1), scale, np.float32), np.full((1, 1), zero, np.float32))


def codes_at(v: NDArray[Any], fmt: Format) -> list[int]:
    return [int(k) for k in encode(np.asarray(v, np.float32)[None, :], unit_grid(fmt), fmt)[0]]


EXACT_NAMES = [n for n in ALL_FORMAT_NAMES if format_named(n).rounding != "half-up"]
HALF_STEP = ("-ct", "-ao")  # grids whose absmax lies on the lowest threshold


@pytest.fixture(params=ALL_FORMAT_NAMES)
def fmt(request: pytest.FixtureRequest) -> Format:
    return format_named(request.param)


def test_cells__tile_the_reach(fmt: Format) -> None:
    cell = cells(fmt)
    assert np.array_equal(cell.lower[1:], cell.upper[:-1])
    assert (cell.lower[0], cell.upper[-1]) == fmt.reach
    reached = 1 if fmt.name.endswith(HALF_STEP) and fmt.zero == "none" else 0
    reached = 0 if fmt.name.startswith("mxfp4") else reached
    assert (cell.width[reached:] > 0).all()
    assert (cell.width[:reached] == 0).all()


def test_cells__have_the_exact_thresholds_as_ends(fmt: Format) -> None:
    assert [Fraction(x) for x in cells(fmt).upper[:-1]] == midpoints(fmt)


def test_cells__end_at_the_last_threshold_where_the_reach_ends_before_it() -> None:
    """Then the end cells have no width, and no threshold lies outside."""
    fmt: Any = SimpleNamespace(thresholds=np.array([-2.0, 0.0, 1.0, 3.0]), reach=(-1.0, 2.0))
    cell = cells(fmt)
    assert cell.lower.tolist() == [-2.0, -2.0, 0.0, 1.0, 3.0]
    assert cell.upper.tolist() == [-2.0, 0.0, 1.0, 3.0, 3.0]


def test_cells__hold_their_levels(fmt: Format) -> None:
    """But for a level beyond absmax, which only a tie reaches."""
    cell, levels = cells(fmt), np.asarray(fmt.levels)
    assert ((cell.lower <= levels) | (cell.width == 0)).all()
    assert (levels <= cell.upper).all()


@pytest.mark.parametrize("name", EXACT_NAMES)
def test_cells__are_sound_and_maximal_in_kernel_arithmetic(name: str) -> None:
    """One float32 inside either end has the code; one outside has the neighbour's: no margin is guessed."""
    fmt = format_named(name)
    upper = cells(fmt).upper[:-1].astype(np.float32)
    codes = list(range(len(upper)))
    assert codes_at(np.nextafter(upper, np.float32(-np.inf)), fmt) == codes
    assert codes_at(np.nextafter(upper, np.float32(np.inf)), fmt) == [k + 1 for k in codes]


def test_cells__end_up_to_an_ulp_early_where_half_is_added_in_float32() -> None:
    """The exception: just below the threshold -1/2 of Q4_0, v + 8.5 rounds to 8, which is the code above.

    `preimages.weight_cells` has the true ends. Here an end is off by at most half an ulp of the sum, u * 16.5.
    """
    fmt = format_named("q4_0")
    upper = cells(fmt).upper[:-1].astype(np.float32)
    codes = list(range(len(upper)))
    below = np.nextafter(upper, np.float32(-np.inf))
    assert codes_at(below, fmt) != codes
    assert codes_at((upper - 16.5 * U32 * 2).astype(np.float32), fmt) == codes
    assert codes_at(upper, fmt) == [k + 1 for k in codes]


@pytest.mark.parametrize("name", EXACT_NAMES)
def test_cells__give_a_tie_to_the_side_that_the_rounding_names(name: str) -> None:
    fmt = format_named(name)
    upper = cells(fmt).upper[:-1]
    codes = np.arange(len(upper))
    goes_up = {
        "half-even": np.asarray(fmt.levels)[1:] % 2 == 0,
        "half-even-label": np.asarray(fmt.labels)[1:] % 2 == 0,
        "half-away": upper > 0,
        "half-lower": np.zeros(len(upper), bool),
    }[fmt.rounding]
    assert codes_at(upper, fmt) == (codes + goes_up).tolist()


@given(formats(names=["int4-g8-asym", "int8-tensor-asym"]), st.integers(0, 15), st.integers(0, 14))
def test_cells__give_a_tie_to_the_even_integer_before_the_zero_point(fmt: Format, zero: int, below: int) -> None:
    w = np.array([[below + 0.5 - zero]], np.float32)
    code = int(encode(w, unit_grid(fmt, zero=zero), fmt)[0, 0])
    assert (code - zero) % 2 == 0
    assert code in (below, below + 1)


@given(samples(names=ALL_FORMAT_NAMES))
def test_cells__hold_every_weight_on_its_own_grid(s: Sample) -> None:
    """v lies in the cell of its code, but for the roundings of the ratio: 3 u |v|, and eta's near 0 and 1 / 0.

    A zero point that is added first, or half, adds a rounding of the sum, and w - low one of the weight.
    """
    blocks = to_blocks(s.w, s.fmt)
    grid = fit_grid(blocks, s.fmt)
    codes = encode(blocks, grid, s.fmt).astype(int)
    v = code_units(blocks.astype(np.float64), grid, s.fmt)
    cell = cells(s.fmt)
    slack = 4 * U32 * np.abs(v - grid.zero) + ETA32
    if s.fmt.zero_first or s.fmt.rounding == "half-up":
        slack = slack + U32 * (np.abs(v) + np.abs(grid.zero) + len(s.fmt.levels))
    inside = (cell.lower[codes] - slack <= v) & (v <= cell.upper[codes] + slack)
    clipped = ((codes == 0) & (v < cell.lower[0])) | ((codes == len(s.fmt.levels) - 1) & (v > cell.upper[-1]))
    assert (inside | clipped).all()


@given(samples(names=[n for n in ALL_FORMAT_NAMES if format_named(n).statistic != "none"]))
def test_reach__closes_what_a_block_can_fill(s: Sample) -> None:
    """|v| <= divisor but for 3 roundings, where the parameters are normal numbers. No block sets those of fp8-cast."""
    blocks = to_blocks(s.w, s.fmt)
    grid = fit_grid(blocks, s.fmt)
    normal = (grid.scale > 2.0**-100) | (grid.scale == 0)
    v = code_units(blocks.astype(np.float64), grid, s.fmt)[normal[:, 0]]
    low, high = s.fmt.reach
    slack = 3 * U32 * 2 * max(high, -low)
    assert (v >= low - slack).all()
    assert (v <= high + slack).all()


@given(formats(names=TILED_NAMES), st.data())
def test_position__inverts_the_interpolation(fmt: Format, data: st.DataObject) -> None:
    code = data.draw(st.integers(0, len(fmt.levels) - 1))
    share = data.draw(st.integers(0, 1024)) / 1024
    cell = cells(fmt)
    v = cell.lower[code] + share * cell.width[code]
    if cell.width[code] == 0:  # a level that no weight reaches
        assert np.isnan(position(np.array([v]), np.array([code]), fmt)[0])
        return
    got = float(position(np.array([v]), np.array([code]), fmt)[0])
    # product, sum and difference round at the size of the cell's ends, the quotient at the size of the share
    ends = max(abs(cell.lower[code]), abs(cell.upper[code]))
    slack = 2.0**-53 * (4 * ends / cell.width[code] + 1)
    assert abs(got - share) <= slack


def test_position__ends_at_0_and_1(fmt: Format) -> None:
    cell, codes = cells(fmt), np.arange(len(fmt.levels))
    wide = cell.width > 0
    assert (position(cell.lower, codes, fmt)[wide] == 0).all()
    assert (position(cell.upper, codes, fmt)[wide] == 1).all()
    assert np.isnan(position(cell.upper, codes, fmt)[~wide]).all()
