"""The grids of the blocks of a piece as `vector` reads them: a table of grids, and an entry of it for each block.

A scale that sees nothing but a block's largest magnitude is a function of that number, and bfloat16 has 32,640 of
those. So the rules of `theory.formats.grids` are asked once for every number, not once for every block.

In: a format, and either the grids of every block or nothing but how many blocks there are. Out: `BlockEntries`. By
magnitudes an entry is the bits of the largest magnitude; those of 1.0 in bfloat16 are 0x3F80:

>>> entries = entries_of_magnitudes(format_named("nf4-b64"), None, None, size=64, count=2)
>>> float(entries.table.scale[0x3F80])
1.0
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.kernel.rules import BlockGrids, Extremes, fit_grids, may_overflow
from unforgotten.audit.kernel.stored_weights import own_memory
from unforgotten.theory.formats.names import Format

Array = NDArray[Any]
NO_GRID = 0
UNUSABLE = np.uint32(0xFFFFFFFF)  # bits of no factor: of a nan
MOST_BINADES = 100  # between a factor that divides and 1: what it is multiplied by is no subnormal number, nor a ratio
SMALLEST = -127  # what frexp says of a power of two whose reciprocal overflows float32
FINITE = 0x7F80
"""How many bfloat16 numbers are finite and not negative; in their order, their bits are 0 … FINITE - 1."""


class GridTable(NamedTuple):
    """Grids by entry, as in `rules.BlockGrids`, of formats without a zero point.

    Attributes:
        grid_id: number of the grid, uint32, equal where all parameters are; NO_GRID where `gain` is too large or too small
            for the kernel.
        factor: what weights are divided by or multiplied with, float32.
        gain: what gives ratios, float32: where weights are divided, about 1 / factor; else the factor.
        scale: what levels are multiplied with, float32.
        reciprocal: 1 / factor, float64; None where weights are multiplied.
        powers: whether all factors are powers of two of which float32 has the reciprocals.
    """

    grid_id: Array
    factor: Array
    gain: Array
    scale: Array
    reciprocal: Array | None
    powers: bool


class BlockEntries(NamedTuple):
    """The entries of every block for the grids before and after.

    Attributes:
        table: table that the entries are of.
        before: entries before, uint32 (n_blocks,).
        after: entries after, uint32 (n_blocks,).
        absmax: largest magnitude of each block before, float32 (n_blocks,).
        filled: whether those three are filled; else the kernel does it, from the bits of the largest magnitudes.
        limits: the largest such bits that the table is good for, before and after.
        shift: what is added to the bits after.
    """

    table: GridTable
    before: Array
    after: Array
    absmax: Array
    filled: bool
    limits: tuple[int, int]
    shift: int


def entries_of_blocks(before: BlockGrids, after: BlockGrids, absmax: Array) -> BlockEntries:
    """Return the entries of blocks each of which has a row of the table for itself."""
    count = len(before.scale)
    both = BlockGrids(*(np.concatenate(pair) for pair in zip(before, after, strict=True)))
    entries = np.arange(2 * count, dtype=np.uint32)
    same = _keys(before) == _keys(after)
    grid_id = 1 + np.concatenate([entries[:count], np.where(same, entries[:count], entries[count:])])
    return BlockEntries(_table(both, grid_id), entries[:count], entries[count:], absmax, True, (0, 0), 0)


def entries_of_magnitudes(
    fmt: Format, tops: tuple[float, float] | None, filled: BlockEntries | None, size: int, count: int
) -> BlockEntries | None:
    """Return the entries of bfloat16 blocks, found by the bits of their largest magnitudes.

    Args:
        fmt: a format of statistic "absmax" that `is_in_registers`.
        tops: the largest magnitudes of the two tensors, where the format needs them.
        filled: entries of the same blocks in another format, found by their bits too, which are filled.
        size: weights of a block. The entries are memory of this thread that blocks of that size are put in.
        count: number of blocks.

    Returns:
        None if a block that is known exceeds the limits.
    """
    table, limits, shift = _table_of_magnitudes(fmt, tops)
    if filled is None:
        before, after, absmax = (
            own_memory((size, k), 4 * count, 0)[: 4 * count].view(dtype)
            for k, dtype in enumerate((np.uint32, np.uint32, np.float32))
        )
        return BlockEntries(table, before, after, absmax, False, limits, shift)
    after = filled.after
    if shift != filled.shift:
        after = (after + np.int64(shift - filled.shift)).astype(np.uint32)
    if filled.before.max() > limits[0] or after.max() > limits[1] + shift:
        return None
    return BlockEntries(table, filled.before, after, filled.absmax, True, limits, shift)


@lru_cache(maxsize=32)
def _table_of_magnitudes(fmt: Format, tops: tuple[float, float] | None) -> tuple[GridTable, tuple[int, int], int]:
    """Return the table, the largest bits before and after that it is good for, and where the entries after begin."""
    before, limit = _blocks_of_magnitudes(fmt, tops and tops[0])
    if tops is None or tops[0] == tops[1]:
        return _table(before, _grid_ids(before)), (limit, limit), 0
    after, limit_after = _blocks_of_magnitudes(fmt, tops[1])
    both = BlockGrids(*(np.concatenate(pair) for pair in zip(before, after, strict=True)))
    return _table(both, _grid_ids(both)), (limit, limit_after), len(before.scale)


def _blocks_of_magnitudes(fmt: Format, top: float | None) -> tuple[BlockGrids, int]:
    """Return the grids of blocks of every magnitude, up to the last that overflows nothing, and the bits of that one."""
    magnitudes = np.arange(FINITE, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
    if top is not None:
        magnitudes = magnitudes[magnitudes <= top]
    count = good = len(magnitudes)
    blocks = _blocks_of(magnitudes, fmt, top)
    if blocks is None:
        good, bad = 0, count
        while good < bad - 1:
            count = (good + bad) // 2
            if (found := _blocks_of(magnitudes[:count], fmt, top)) is None:
                bad = count
            else:
                good, blocks = count, found
    assert blocks is not None, "a block of zeros overflows nothing"
    return blocks, good - 1


def _blocks_of(magnitudes: Array, fmt: Format, top: float | None) -> BlockGrids | None:
    extremes = Extremes(-magnitudes, magnitudes, np.zeros(len(magnitudes), bool))
    absmax = np.nan if top is None else top
    try:
        blocks = fit_grids(extremes, fmt, tensor_absmax=absmax, partial=False)
    except ValueError:  # a scale overflows what stores it
        return None
    return None if may_overflow(blocks, fmt) else blocks


def _keys(grids: BlockGrids) -> Array:
    """Return a number (uint64) for each grid, by the bits of its parameters."""
    factor = np.where(grids.usable, grids.factor.view(np.uint32), UNUSABLE).astype(np.uint64)
    return factor << np.uint64(32) | grids.scale.view(np.uint32)


def _grid_ids(grids: BlockGrids) -> Array:
    return 1 + np.unique(_keys(grids), return_inverse=True)[1].astype(np.uint32)


def _table(grids: BlockGrids, grid_id: Array) -> GridTable:
    divide, factor = bool(grids.divide[0]), grids.factor
    fraction, exponent = np.frexp(factor)
    powers = bool(((fraction == 0.5) & (exponent > SMALLEST)).all())
    if divide and powers:
        # the product is the quotient, rounded once as well
        divide, factor = False, np.where(grids.usable, 1 / factor, np.float32(0))
    if not divide:
        return GridTable(grid_id, factor, factor, grids.scale, None, powers)
    # 0 where the scale says nothing, so that ratios are 0
    reciprocal = np.where(grids.usable, 1 / factor.astype(np.float64), 0)
    binades = np.abs(np.log2(np.abs(factor.astype(np.float64))))
    grid_id = np.where(binades > MOST_BINADES, np.uint32(NO_GRID), grid_id)
    with np.errstate(over="ignore"):
        gain = reciprocal.astype(np.float32)
    return GridTable(grid_id, factor, gain, grids.scale, reciprocal, powers)
