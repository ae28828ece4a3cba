from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from unforgotten.theory.formats import kquants
from unforgotten.theory.formats.grids import FITS, SETTERS, Grid
from unforgotten.theory.formats.hqq import proximal_affine
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import code_units, encode, fit_grid, quantize, round_trip, to_blocks
from unforgotten.theory.laws.update import GRID_MODES, GridMode, survival
from unforgotten.verification.chance import rng_for
from unforgotten.verification.domains.strategies import ALL_FORMAT_NAMES, Sample, samples

K_QUANTS: dict[str, Callable[[NDArray[Any]], kquants.KBlocks]] = {
    "q3_k": kquants.q3_k,
    "q4_k": kquants.q4_k,
    "q5_k": kquants.q5_k,
    "q6_k": kquants.q6_k,
}


def test_setters__know_every_statistic() -> None:
    assert set(SETTERS) == set(FITS)


@given(samples(names=ALL_FORMAT_NAMES))
def test_setters__set_the_parameters(s: Sample) -> None:
    """Without the entries that do not set them, the parameters are the same. 0 need not lie between min and max."""
    blocks = to_blocks(s.w, s.fmt)
    moved_zero = s.fmt.zero in ("minimum", "float")
    filler = blocks.min(axis=1, keepdims=True) if moved_zero else np.float32(0)
    kept = np.where(SETTERS[s.fmt.statistic](blocks), blocks, filler)
    a, b = FITS[s.fmt.statistic](blocks, s.fmt), FITS[s.fmt.statistic](kept, s.fmt)
    assert np.array_equal(a.scale, b.scale)
    assert np.array_equal(a.zero, b.zero)


@pytest.mark.parametrize(
    ("statistic", "expected"),
    [
        ("absmax", [[1, 0, 0, 0], [0, 0, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]]),
        ("min-max", [[1, 0, 1, 0], [1, 0, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]]),
        ("range", [[1, 0, 1, 0], [0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]),
    ],
)
def test_setters__are_the_ends_that_are_seen(statistic: str, expected: list[list[int]]) -> None:
    """Both ends set a range; one that does not reach 0 ends there, and 0 itself is nobody's."""
    blocks = np.array([[-3, 1, 2, 0], [1, 2, 3, 3], [-4, -2, -2, -1], [0, 0, 0, 0]], np.float32)
    assert SETTERS[statistic](blocks).astype(int).tolist() == expected


def hard_rows(name: str) -> NDArray[Any]:
    rng = rng_for(name)
    w = (0.02 * rng.normal(size=(12, 512))).astype(np.float32)
    w[1] *= rng.standard_t(2, size=512).astype(np.float32)
    w[2], w[3, :256] = 0, 0
    w[4] = np.abs(w[4])
    w[5, ::16] = 1
    w[6] *= np.float32(1e-7)
    return w


@pytest.mark.parametrize("name", K_QUANTS)
def test_fit_k_quants__reads_the_codes_and_values_of_the_search(name: str) -> None:
    """One description for all: the parameters that the search rounds make the codes that it returns."""
    w, fmt = hard_rows(name), format_named(name)
    found = K_QUANTS[name](w.reshape(-1, 256))
    codes, grid = quantize(w, fmt)
    labels = np.asarray(fmt.labels)[codes].reshape(-1, 256)
    assert np.array_equal(round_trip(w, fmt).reshape(-1, 256), found.values)
    assert np.array_equal(labels[grid.scale != 0], found.codes[grid.scale != 0])


@pytest.mark.parametrize("mode", GRID_MODES)
@pytest.mark.parametrize("name", [*K_QUANTS, "hqq4-g64-opt"])
def test_survival__takes_searched_formats(name: str, mode: GridMode) -> None:
    w, fmt = hard_rows(name), format_named(name)
    w_new = (w + 0.001 * rng_for(mode).normal(size=w.shape)).astype(np.float32)
    got = survival(w, w_new, fmt, mode)
    grid = fit_grid(to_blocks(w, fmt), fmt)
    grid_new = fit_grid(to_blocks(w_new, fmt), fmt) if mode == "adaptive" else grid
    flips = encode(to_blocks(w, fmt), grid, fmt) != encode(to_blocks(w_new, fmt), grid_new, fmt)
    assert got.code_flips == flips.sum()
    assert 0 < got.gain


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [0.02, 3.0])
def test_proximal_affine__errs_less_in_the_mean_than_min_max(bits: int, size: float) -> None:
    """At size 3 errors exceed 0.17 at 2 and 3 bits, so that outliers are shrunk."""
    w = (size * rng_for(bits, size).normal(size=(32, 64))).astype(np.float32)
    plain, searched = (np.abs(round_trip(w, format_named(f"hqq{bits}-g64{rule}")) - w).mean() for rule in ("", "-opt"))
    assert searched < plain


def test_proximal_affine__keeps_the_scales() -> None:
    w = rng_for("scales").normal(size=(4, 64)).astype(np.float32)
    fmt = format_named("hqq4-g64-opt")
    inverse = fit_grid(w, format_named("hqq4-g64")).encoder
    assert inverse is not None
    assert np.array_equal(proximal_affine(w, fmt).inverse, inverse.scale)


def test_proximal_affine__stops_at_a_fixed_point_or_after_20_steps() -> None:
    """Weights on their own grid have no error: the first step keeps the zero point, the second stops."""
    w = np.tile(np.arange(16, dtype=np.float32) - 5, (2, 4))
    affine = proximal_affine(w, format_named("hqq4-g64-opt"))
    assert affine.zero.ravel().tolist() == [5, 5]


def test_grid__rows_cut_every_part() -> None:
    scale, low = np.arange(3, dtype=np.float32)[:, None], np.ones((3, 1), np.float32)
    grid = Grid(scale, scale, low, Grid(2 * scale, scale))
    part = grid.rows(1, 3)
    assert part.low is not None
    assert part.encoder is not None
    assert part.encoder.low is None
    assert part.scale.ravel().tolist() == [1, 2]
    assert part.encoder.scale.ravel().tolist() == [2, 4]
    assert part.low.shape == (2, 1)


def test_code_units__are_those_of_the_parameters_that_make_the_codes() -> None:
    """Q8_0: absmax lies at 127 of the float32 scale, whatever the float16 scale is."""
    fmt = format_named("q8_0")
    w = np.full((1, 32), 0.3, np.float32)
    grid = fit_grid(w, fmt)
    assert abs(float(code_units(w, grid, fmt)[0, 0]) - 127) <= 127 * 3 * 2.0**-24
    assert abs(0.3 / float(grid.scale[0, 0]) - 127) > 1e-3


@pytest.mark.parametrize(("ends", "zero"), [((-1, 5), -2), ((-3, 3), 0)])
def test_fit_grid__rounds_a_zero_point_on_a_tie_to_even(ends: tuple[int, int], zero: int) -> None:
    """Scale 2, levels from -2: 0 lies at -2 + 1/2 and at -2 + 3/2; half-up would give -1 and 0."""
    grid = fit_grid(np.array([ends], np.float32), format_named("int2-row-ct-asym"))
    assert grid.zero.item() == zero
