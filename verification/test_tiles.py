"""Tiles of rows and columns: each weight is rounded by the scale of its own tile, in every shape, and so measured."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from numpy.typing import NDArray

from unforgotten.audit.kernel.simd import NUMPY, available_paths
from unforgotten.audit.sources.flat import Piece, layout_of, pieces
from unforgotten.audit.weights import piece as measuring
from unforgotten.audit.weights import piece_blocks
from unforgotten.audit.weights import task as tensor_task
from unforgotten.audit.weights.piece import add_pieces, measure_piece
from unforgotten.audit.weights.piece_blocks import span_of
from unforgotten.audit.weights.sums import Setting, TensorMeasured
from unforgotten.audit.weights.warming import InMemory
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import quantize, round_trip
from unforgotten.theory.formats.tiles import from_tiles, matrices_of, to_tiles
from unforgotten.theory.geometry.dead_zone import count_binades
from unforgotten.theory.laws.update import GRID_MODES, survival
from unforgotten.verification.agreement import assert_agree
from unforgotten.verification.chance import rng_for

Array = NDArray[Any]
PATHS = [path for path in available_paths() if path != NUMPY]
SHAPES = ((1,), (7,), (1, 1), (4, 6), (5, 7), (9, 3), (2, 4, 6), (3, 5, 7), (2, 2, 3, 5))
"""Whole and cut tiles of 2 x 3 and 4 x 3: vectors, matrices, and stacks of them, as experts are."""

shapes = st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple)
tiles = st.tuples(st.integers(1, 5), st.integers(1, 5))


def by_slices(w: Array, tile: tuple[int, int]) -> dict[tuple[int, ...], Array]:
    """Return the tiles by place, cut out of each matrix one by one: the definition."""
    matrices = w.reshape(-1, *(1, *w.shape)[-2:])
    high, wide = tile
    return {
        (k, i, j): matrix[i : i + high, j : j + wide]
        for k, matrix in enumerate(matrices)
        for i, j in product(range(0, matrix.shape[0], high), range(0, matrix.shape[1], wide))
    }


@given(shapes, tiles)
@example((3, 5, 7), (2, 3))
def test_to_tiles__has_one_tile_a_row_and_zeros_at_the_edges(shape: tuple[int, ...], tile: tuple[int, int]) -> None:
    w = np.arange(1.0, 1 + np.prod(shape)).reshape(shape)
    found, parts = to_tiles(w, tile), list(by_slices(w, tile).values())
    assert len(found) == len(parts)
    for row, part in zip(found.reshape(-1, *tile), parts, strict=True):
        rows, columns = part.shape
        assert np.array_equal(row[:rows, :columns], part)
        assert not row[rows:].any()
        assert not row[:, columns:].any()


@given(shapes, tiles)
def test_from_tiles__undoes_to_tiles(shape: tuple[int, ...], tile: tuple[int, int]) -> None:
    w = np.arange(1.0, 1 + np.prod(shape)).reshape(shape)
    assert np.array_equal(from_tiles(to_tiles(w, tile), shape, tile), w)
    assert np.prod(matrices_of(shape)) == w.size


def drawn(shape: tuple[int, ...], *seed: object) -> Array:
    """Weights whose scale differs much from row to row and column to column, some 0."""
    rng = rng_for("tiles", shape, *seed)
    w = rng.normal(size=shape) * np.exp(2 * rng.normal(size=shape[-1:]))
    if len(shape) > 1:
        w = w * np.exp(2 * rng.normal(size=(*shape[:-1], 1)))
    w[rng.random(shape) < 0.1] = 0
    return np.asarray(w, np.float32)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_round_trip__is_that_of_each_tile_alone(shape: tuple[int, ...], dtype: type) -> None:
    w: Array = drawn(shape).astype(dtype)
    alone = format_named("fp8-tensor")
    expected = np.empty(w.shape, np.float32)
    for part, to in zip(by_slices(w, (2, 3)).values(), by_slices(expected, (2, 3)).values(), strict=True):
        to[...] = round_trip(part, alone)
    assert np.array_equal(round_trip(w, format_named("fp8-b2x3")), expected)
    codes, grid = quantize(w, format_named("fp8-b2x3"))
    assert codes.shape == w.shape
    assert len(grid.scale) == len(by_slices(w, (2, 3)))


def test_round_trip__differs_from_groups_and_rows() -> None:
    """So that an oracle of other blocks would be noticed: a large weight coarsens its tile, and nothing beside it."""
    w = np.full((4, 6), 0.3, np.float32)
    w[0, 0] = 1000
    changed = round_trip(w, format_named("fp8-b2x3")) != round_trip(np.full_like(w, 0.3), format_named("fp8-b2x3"))
    assert np.argwhere(changed).tolist() == [[i, j] for i in range(2) for j in range(3)]


def test_a_tile_of_zeros_stays_zero() -> None:
    w = drawn((4, 6))
    w[:2, 3:] = 0
    values = round_trip(w, format_named("fp8-b2x3"))
    assert not values[:2, 3:].any()
    assert quantize(w, format_named("fp8-b2x3"))[1].scale[1] == np.float32(2.0**-23)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused(bad: float) -> None:
    w = drawn((5, 7))
    w[4, 6] = bad
    with pytest.raises(ValueError, match="weights must be finite to be quantized to fp8-b2x3"):
        round_trip(w, format_named("fp8-b2x3"))
    with pytest.raises(ValueError, match="must not be empty"):
        round_trip(np.zeros((0, 4), np.float32), format_named("fp8-b2x3"))


def measured(pair: tuple[Array, Array], names: list[str], path: str, most: int) -> TensorMeasured:
    """Measure a pair in pieces of at most `most` weights."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (piece_blocks, measuring, tensor_task):
            patch.setattr(module, "PIECE_WEIGHTS", most)
        before, after = (InMemory(w) for w in pair)
        task = tensor_task.tensor_task(before, after, "w", [format_named(n) for n in names], path)
        return add_pieces(task, [measure_piece(task, piece) for piece in pieces(task.shape, most)])


@settings(deadline=None)  # the first example loads the compiled code
@given(
    st.sampled_from(SHAPES),
    st.sampled_from([(np.float32, np.float32), (ml_dtypes.bfloat16,) * 2, (ml_dtypes.bfloat16, np.float32)]),
    st.integers(1, 50),
    st.sampled_from([1e-3, 0.1]),
    st.sampled_from(PATHS),
)
@example((3, 5, 7), (np.float32, np.float32), 1, 0.1, "scalar")
def test_kernel__measures_tiles_as_the_reference_does(
    shape: tuple[int, ...], dtypes: tuple[type, type], most: int, size: float, path: str
) -> None:
    """In pieces of any size, smaller than a band or a row too, beside another format, and with cut tiles."""
    w: Array = drawn(shape).astype(dtypes[0])
    moved = drawn(shape, "update")
    w_new: Array = (w.astype(np.float32) + np.float32(size) * np.where(moved > 0, moved, 0)).astype(dtypes[1])
    names = ["int4-row", "fp8-b2x3", "fp8-b4x3"]
    found = measured((w, w_new), names, path, most)
    for name, mode in product(names, GRID_MODES):
        assert_agree(found.survival[Setting(name, mode)], survival(w, w_new, format_named(name), mode))
    assert found.binades == count_binades(w, w_new)


@pytest.mark.parametrize("path", PATHS)
def test_kernel__measures_tiles_of_128_at_ties(path: str) -> None:
    """Weights on and around the thresholds of E4M3, where the tile's largest weight is 448."""
    fmt, rng = format_named("fp8-b128x128"), rng_for("ties of tiles")
    w = rng.choice(fmt.thresholds, (300, 260)).astype(np.float32)
    w[::64, ::64] = 448
    towards = np.where(w == 448, w, rng.choice([-1e9, 1e9], w.shape)).astype(np.float32)
    w_new = np.nextafter(w, towards)
    found = measured((w, w_new), [fmt.name], path, 300 * 260)
    for mode in GRID_MODES:
        expected = survival(w, w_new, fmt, mode)
        assert expected.code_flips > w.size // 4
        assert_agree(found.survival[Setting(fmt.name, mode)], expected)


@given(st.sampled_from(SHAPES), st.integers(1, 50))
def test_bands_that_begin_in_pieces__are_the_tensor_once(shape: tuple[int, ...], most: int) -> None:
    layout = layout_of(format_named("fp8-b2x3"), shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(piece_blocks, "PIECE_WEIGHTS", most)
        spans = [span_of(layout, piece) for piece in pieces(shape, most)]
    found = [span for span in spans if span.start < span.stop]
    assert found[0].start == 0
    assert found[-1].stop == np.prod(shape)
    assert all(one.stop == other.start for one, other in pairwise(found))
    assert all(isinstance(span, Piece) for span in spans)
    _, rows, columns = matrices_of(shape)
    assert all(span.start % (rows * columns) % (2 * columns) == 0 for span in found)
