"""Parameters by a table of all bfloat16 magnitudes are those that the rules choose block by block."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from unforgotten.audit.kernel.entries import FINITE, NO_GRID, entries_of_blocks, entries_of_magnitudes
from unforgotten.audit.kernel.rules import BlockGrids, Extremes, fit_grids, may_overflow
from unforgotten.audit.kernel.simd import VECTOR_PATHS, available_paths
from unforgotten.audit.kernel.vector import measure_registers
from unforgotten.audit.kernel.vector_rules import is_in_registers
from unforgotten.theory.formats.names import Format, format_named
from unforgotten.verification.chance import rng_for
from unforgotten.verification.domains import strategies as domain

Array = NDArray[Any]
NAMES = [
    name
    for name in (*domain.ALL_FORMAT_NAMES, "mxfp4-b32", "nf4-b64", "int4-g64")
    if (fmt := format_named(name)).statistic == "absmax" and is_in_registers(fmt)
]

VECTORS = [path for path in VECTOR_PATHS if path in available_paths()]
vectors = pytest.mark.parametrize(
    "path", VECTORS or [pytest.param("", marks=pytest.mark.skip(reason="this processor has no vector path"))]
)
"""Each path of sixteen weights that this machine can run; none other is ever compiled."""


def magnitudes(fmt: Format, tops: tuple[float, float] | None) -> Array:
    """Every finite bfloat16 that is not negative, as far as the tensor has it, as float32."""
    found = np.arange(FINITE, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
    return found[found <= min(tops)] if tops else found


def direct(sizes: Array, fmt: Format, top: float | None) -> Any:
    extremes = Extremes(-sizes, sizes, np.zeros(len(sizes), bool))
    absmax = np.nan if top is None else top
    return fit_grids(extremes, fmt, tensor_absmax=absmax, partial=False)


def ratios(sizes: Array, usable: Array, factor: Array, *, divide: bool) -> Array:
    with np.errstate(all="ignore"):
        found = sizes / factor if divide else sizes * factor
    return np.where(usable, found, np.float32(0))


@pytest.mark.parametrize("name", NAMES)
def test_entries_of_magnitudes__is_the_rule_for_every_bfloat16(name: str) -> None:
    fmt = format_named(name)
    tops = (1.5, 0.75) if fmt.tensor_range else None
    entries = entries_of_magnitudes(fmt, tops, None, 64, 1)
    assert entries is not None
    for k, most in enumerate(entries.limits):
        sizes = magnitudes(fmt, tops)[: most + 1]
        expected = direct(sizes, fmt, tops and tops[k])
        at = np.arange(len(sizes)) + k * entries.shift
        table = entries.table
        divide = table.reciprocal is not None
        usable = expected.usable & (table.grid_id[at] != NO_GRID)
        assert np.array_equal(table.scale[at], expected.scale)
        found = ratios(sizes, usable, table.factor[at], divide=divide)
        rule = ratios(sizes, usable, expected.factor, divide=bool(expected.divide[0]))
        assert np.array_equal(found, rule)


@pytest.mark.parametrize("name", [n for n in NAMES if not format_named(n).tensor_range])
def test_limits__are_the_last_magnitudes_that_overflow_nothing(name: str) -> None:
    fmt = format_named(name)
    entries = entries_of_magnitudes(fmt, None, None, 64, 1)
    assert entries is not None
    sizes = magnitudes(fmt, None)
    assert entries.limits[0] == entries.limits[1] < len(sizes)
    assert not may_overflow(direct(sizes[: entries.limits[0] + 1], fmt, None), fmt)
    if entries.limits[0] + 1 < len(sizes):
        try:
            over = may_overflow(direct(sizes[entries.limits[0] + 1 :][:1], fmt, None), fmt)
        except ValueError:
            over = True
        assert over


def bits(w: Array) -> Array:
    return w.astype(ml_dtypes.bfloat16).view(np.uint16)


@vectors
@pytest.mark.parametrize("name", ["nf4-b64", "fp4-b64", "mxfp4-b32", "nvfp4", "int4-g64"])
def test_measure_registers__of_magnitudes_equals_that_of_blocks(name: str, path: str) -> None:
    """The same pair with one entry for each block: every number equal, and the entries are those of the blocks."""
    fmt, rng = format_named(name), rng_for("of magnitudes", name)
    size = fmt.block_size
    assert size
    w = (0.02 * rng.standard_normal((512, size))).astype(np.float32)
    w[:8] = 0
    x = bits(w)
    y = bits(w + (1e-3 * rng.standard_normal(w.shape)).astype(np.float32))
    before, after = (z.view(ml_dtypes.bfloat16).astype(np.float32) for z in (x, y))
    ends = [np.abs(z).max(axis=1) for z in (before, after)]
    tops = (float(ends[0].max()), float(ends[1].max())) if fmt.tensor_range else None
    entries = entries_of_magnitudes(fmt, tops, None, size, len(w))
    blocks = [direct(z, fmt, tops and tops[k]) for k, z in enumerate(ends)]
    each = entries_of_blocks(blocks[0], blocks[1], ends[0])
    assert entries is not None
    found = measure_registers((x.reshape(-1), y.reshape(-1)), size, fmt, entries, path)
    expected = measure_registers((x.reshape(-1), y.reshape(-1)), size, fmt, each, path)
    assert found is not None
    assert expected is not None
    pairs: list[tuple[Any, Any]] = list(zip(found, expected, strict=True))
    assert all(np.array_equal(one, other) for one, other in pairs)
    assert np.array_equal(entries.absmax, ends[0])
    assert np.array_equal(entries.before, ends[0].view(np.uint32) >> 16)
    assert np.array_equal(entries.after, (ends[1].view(np.uint32) >> 16) + entries.shift)


def test_grids__are_equal_where_all_parameters_are() -> None:
    """A sign, a scale that says nothing, and each parameter alone make another grid."""
    nothing = np.zeros(6, np.float32)
    factor = np.array([2, 2, -2, 4, 2, 2], np.float32)
    scale = np.array([3, 3, 3, 3, 5, 3], np.float32)
    usable = np.array([True, True, True, True, True, False])
    blocks = BlockGrids(np.zeros(6, bool), usable, factor, nothing, nothing, scale, nothing, nothing)
    grid = entries_of_blocks(blocks, BlockGrids(*(p[:1].repeat(6) for p in blocks)), scale).table.grid_id
    assert (grid[:6] == grid[6:]).tolist() == [True, True, False, False, False, False]


@vectors
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_measure_registers__stops_at_what_is_not_finite(bad: float, side: int, path: str) -> None:
    fmt = format_named("nf4-b64")
    pair = [np.ones(4096, np.float32), np.ones(4096, np.float32)]
    pair[side][4000] = bad
    entries = entries_of_magnitudes(fmt, None, None, 64, 64)
    assert entries is not None
    assert measure_registers((bits(pair[0]), bits(pair[1])), 64, fmt, entries, path) is None
    pair[side][4000] = 1
    after = measure_registers((bits(pair[0]), bits(pair[1])), 64, fmt, entries, path)
    assert after is not None
    assert after.weights.sum() == 4096, "nothing is left of the blocks before"


@vectors
def test_entries_of_magnitudes__of_known_blocks_has_limits_too(path: str) -> None:
    """A block that one format can take and the next cannot: of two formats, one's end level is larger."""
    first, second = format_named("nf4-b64"), format_named("int4-g64-ct")
    limits = [
        entries.limits[1] for fmt in (first, second) if (entries := entries_of_magnitudes(fmt, None, None, 64, 1))
    ]
    assert limits[1] < limits[0]
    x = bits(rng_for("known blocks").standard_normal(64))
    y = x.copy()
    y[3] = limits[0]
    entries = entries_of_magnitudes(first, None, None, 64, 1)
    assert entries is not None
    assert measure_registers((x, y), 64, first, entries, path) is not None
    assert entries_of_magnitudes(second, None, entries, 64, 1) is None
