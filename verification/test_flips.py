from __future__ import annotations

from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from unforgotten.theory.formats.names import Format, format_named
from unforgotten.theory.formats.reference import Grid, encode
from unforgotten.theory.geometry.cells import cells
from unforgotten.theory.laws.flips import flip_probability
from unforgotten.verification.chance import assert_mean, detectable_gap, rng_for
from unforgotten.verification.domains.strategies import FORMAT_NAMES, TILED_NAMES, formats
from unforgotten.verification.oracles import U32, U64

SIMULATED = ("int4-g64", "nf4-b64", "fp4-b64")
SHIFTS = (0.0, 2.0**-12, -0.003, 0.02, -0.05, 0.11, -0.4, 0.9, -1.7)
GRID_POINTS = 20_000
TRIALS = 200_000


@pytest.fixture(params=SIMULATED)
def fmt(request: pytest.FixtureRequest) -> Format:
    return format_named(request.param)


def probability(shift: float, code: int, fmt: Format) -> float:
    return float(flip_probability(np.array([shift]), np.array([code]), fmt)[0])


def flips(places: NDArray[Any], code: int, shift: float, fmt: Format) -> NDArray[Any]:
    """Whether the kernel changes the code of weights at `places` in (0, 1) of a cell, on the unit grid."""
    cell = cells(fmt)
    v = cell.lower[code] + places * cell.width[code]
    scale = fmt.divisor if fmt.arithmetic == "multiply" else 1.0
    grid = Grid(np.full((1, 1), scale, np.float32), np.zeros((1, 1), np.float32))
    before, after = (encode(x.astype(np.float32)[None, :], grid, fmt)[0] for x in (v, v + shift))
    return np.asarray(before != after)


def rounding_layer(code: int, shift: float, fmt: Format) -> float:
    """Share of the cell so near a threshold that the cast to float32 may cross it: u |v| at v and at v + shift."""
    cell = cells(fmt)
    ends = max(abs(cell.lower[code]), abs(cell.upper[code]))
    return float(2 * U32 * (2 * ends + abs(shift)) / cell.width[code])


@given(formats(names=TILED_NAMES), st.data())
def test_flip_probability__is_the_exact_length_of_the_flipping_part(fmt: Format, data: st.DataObject) -> None:
    """Oracle: the part of [lower, upper] that v + shift leaves, in rationals; end cells do not end outward."""
    code = data.draw(st.integers(0, len(fmt.levels) - 1))
    shift = data.draw(st.floats(-300, 300))
    cell = cells(fmt)
    lower, upper = Fraction(cell.lower[code]), Fraction(cell.upper[code])
    exact = Fraction(shift)
    up = min(max(exact, Fraction(0)), upper - lower) if code < len(fmt.levels) - 1 else Fraction(0)
    down = min(max(-exact, Fraction(0)), upper - lower) if code > 0 else Fraction(0)
    expected = (up + down) / (upper - lower)
    slack = 2 * U64 * expected + Fraction(2) ** -1074  # the width and the quotient, each rounded once
    assert abs(Fraction(probability(shift, code, fmt)) - expected) <= slack


def test_flip_probability__is_the_share_of_a_fine_grid_of_positions(fmt: Format) -> None:
    """Midpoints of GRID_POINTS equal parts: a share differs from a length by at most one point, but for rounding."""
    places = (np.arange(GRID_POINTS) + 0.5) / GRID_POINTS
    for code in range(len(fmt.levels)):
        for shift in SHIFTS:
            share = flips(places, code, shift, fmt).mean()
            slack = 1 / GRID_POINTS + rounding_layer(code, shift, fmt)
            assert abs(share - probability(shift, code, fmt)) <= slack


@pytest.mark.parametrize("name", SIMULATED)
@pytest.mark.parametrize("shift", [0.01, -0.07, 0.5])
def test_flip_probability__is_the_rate_of_random_positions(name: str, shift: float) -> None:
    fmt = format_named(name)
    for code in range(len(fmt.levels)):
        places = rng_for(name, code, shift).uniform(size=TRIALS)
        flipped = flips(places, code, shift, fmt)
        slack = rounding_layer(code, shift, fmt)
        assert_mean(flipped, probability(shift, code, fmt), slack=slack)


def test_flip_probability__sample_size_resolves_two_percent() -> None:
    assert detectable_gap(TRIALS) < 0.02


@pytest.mark.parametrize("name", ["nf4-b64", "fp4-b64"])
def test_flip_probability__simulation_refutes_a_uniform_grid(name: str) -> None:
    """A law that forgets the cell's own width, and takes the mean step, fails in most cells."""
    fmt = format_named(name)
    mean_step = (fmt.reach[1] - fmt.reach[0]) / len(fmt.levels)
    refuted = 0
    for code in range(1, len(fmt.levels) - 1):
        flipped = flips(rng_for(name, code).uniform(size=TRIALS), code, mean_step / 4, fmt)
        refuted += abs(float(flipped.mean()) - 0.25) > detectable_gap(TRIALS)
    assert refuted > len(fmt.levels) / 2


@given(formats(), st.data())
def test_flip_probability__is_monotone_in_the_size(fmt: Format, data: st.DataObject) -> None:
    code = data.draw(st.integers(0, len(fmt.levels) - 1))
    small, large = sorted(data.draw(st.tuples(st.floats(0, 10), st.floats(0, 10))))
    sign = data.draw(st.sampled_from([-1, 1]))
    assert 0 <= probability(sign * small, code, fmt) <= probability(sign * large, code, fmt) <= 1


@given(formats(), st.data())
def test_flip_probability__mirrors_in_inner_cells(fmt: Format, data: st.DataObject) -> None:
    code = data.draw(st.integers(1, len(fmt.levels) - 2))
    shift = data.draw(st.floats(-10, 10))
    assert probability(shift, code, fmt) == probability(-shift, code, fmt)


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_flip_probability__is_0_without_a_shift_and_1_across_a_cell(name: str) -> None:
    fmt = format_named(name)
    codes = np.arange(len(fmt.levels))
    width = cells(fmt).width
    assert (flip_probability(np.zeros(len(codes)), codes, fmt) == 0).all()
    assert (flip_probability(width, codes, fmt)[:-1] == 1).all()
    assert (flip_probability(-width, codes, fmt)[1:] == 1).all()
    assert flip_probability(width, codes, fmt)[-1] == flip_probability(-width, codes, fmt)[0] == 0


@given(formats(names=TILED_NAMES), st.floats(2.0**-20, 2.0**-12))
def test_flip_probability__sums_to_the_boundary_density(fmt: Format, shift: float) -> None:
    """For w uniform on the reach: P(flip) = |shift| (K - 1) / reach while the shift is below every width."""
    cell = cells(fmt)
    shift = min(shift, float(cell.width.min()))
    codes = np.arange(len(fmt.levels))
    weights = cell.width / cell.width.sum()
    total = float((weights * flip_probability(np.full(len(codes), shift), codes, fmt)).sum())
    expected = shift * (len(codes) - 1) / (fmt.reach[1] - fmt.reach[0])
    slack = U64 * (len(codes) + 6) * expected  # a sum of K terms of 4 roundings, and the two widths
    assert abs(total - expected) <= slack
