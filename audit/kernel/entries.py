"""The parameters of the blocks of a piece as `vector` reads them: a table, and an entry of it for each block.

A scale that sees nothing but a block's largest magnitude is a function of that number, and bfloat16 has 32,640 of
those. So the rules of `theory.formats.grids` are asked once for every number, not once for every block.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.kernel.rules import Blocks, Extremes, fit_blocks, may_overflow
from unforgotten.audit.kernel.stored_weights import own_memory
from unforgotten.theory.formats.names import Format

Array = NDArray[Any]
NO_GRID = 0
UNUSABLE = np.uint32(0xFFFFFFFF)  # bits of no factor: of a nan
MOST_BINADES = 100  # between a factor that divides and 1: what it is multiplied by is no subnormal number, nor a ratio
SMALLEST = -127  # what frexp says of a power of two whose reciprocal overflows float32
FINITE = 0x7F80
"""How many bfloat16 numbers are finite and not negative; in their order, their bits are 0 … FINITE - 1."""


class Table(NamedTuple):
    """Parameters by entry, as in `rules.Blocks`; `reciprocal` is float64, 1 / factor, and None where they multiply.

    `grid`, uint32, is equal where the parameters are, and NO_GRID where `gain`, the float32 of the reciprocal, is too
    large or too small for the kernel. Where they multiply, `gain` is the factor. `powers` says whether all factors are
    powers of two of which float32 has the reciprocals.
    """

    grid: Array
    factor: Array
    gain: Array
    scale: Array
    reciprocal: Array | None
    powers: bool


class Fit(NamedTuple):
    """The entries of every block for the grids before and after.

    Attributes:
        table: table of the entries.
        before: entry of each block before, uint32 (n_blocks,).
        after: entry of each block after, uint32 (n_blocks,).
        absmax: largest magnitude of each block before, float32 (n_blocks,).
        known: whether `before`, `after` and `absmax` are filled; else the kernel does it, from the magnitudes' bits.
        limits: largest bits before and after that the table is good for.
        shift: number that the kernel adds to the bits after, or has added.
    """

    table: Table
    before: Array
    after: Array
    absmax: Array
    known: bool
    limits: tuple[int, int]
    shift: int


def fit_of_blocks(before: Blocks, after: Blocks, absmax: Array) -> Fit:
    """Return the fit in which each block has entries of its own."""
    count = len(before.scale)
    both = Blocks(*(np.concatenate(pair) for pair in zip(before, after, strict=True)))
    entries = np.arange(2 * count, dtype=np.uint32)
    same = _keys(before) == _keys(after)
    grid = 1 + np.concatenate([entries[:count], np.where(same, entries[:count], entries[count:])])
    return Fit(_table(both, grid), entries[:count], entries[count:], absmax, True, (0, 0), 0)


def fit_of_magnitudes(
    fmt: Format, tops: tuple[float, float] | None, known: Fit | None, size: int, count: int
) -> Fit | None:
    """Return the fit whose entries are found by the bits of the largest magnitudes of bfloat16 blocks.

    Args:
        fmt: a format of statistic "absmax" that `fits_registers`.
        tops: the largest magnitudes of the two tensors, where the format needs them.
        known: fit of another format to the same blocks, found by their bits too, whose entries are filled.
        size: weights of a block. The entries are memory of this thread that blocks of that size are put in.
        count: number of blocks.

    Returns:
        None if a known block exceeds the limits.
    """
    table, limits, shift = _table_of_magnitudes(fmt, tops)
    if known is None:
        before, after, absmax = (
            own_memory((size, k), 4 * count, 0)[: 4 * count].view(dtype)
            for k, dtype in enumerate((np.uint32, np.uint32, np.float32))
        )
        return Fit(table, before, after, absmax, False, limits, shift)
    after = known.after
    if shift != known.shift:
        after = (after + np.int64(shift - known.shift)).astype(np.uint32)
    if known.before.max() > limits[0] or after.max() > limits[1] + shift:
        return None
    return Fit(table, known.before, after, known.absmax, True, limits, shift)


@lru_cache(maxsize=32)
def _table_of_magnitudes(fmt: Format, tops: tuple[float, float] | None) -> tuple[Table, tuple[int, int], int]:
    """Return the table, the largest bits before and after that it is good for, and where the entries after begin."""
    before, limit = _blocks_of_magnitudes(fmt, tops and tops[0])
    if tops is None or tops[0] == tops[1]:
        return _table(before, _grids(before)), (limit, limit), 0
    after, limit_after = _blocks_of_magnitudes(fmt, tops[1])
    both = Blocks(*(np.concatenate(pair) for pair in zip(before, after, strict=True)))
    return _table(both, _grids(both)), (limit, limit_after), len(before.scale)


def _blocks_of_magnitudes(fmt: Format, top: float | None) -> tuple[Blocks, int]:
    """Fit a block to every magnitude up to the last that overflows nothing; return the bits of that one, too."""
    sizes = np.arange(FINITE, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
    if top is not None:
        sizes = sizes[sizes <= top]
    count = good = len(sizes)
    blocks = _blocks_of(sizes, fmt, top)
    if blocks is None:
        good, bad = 0, count
        while good < bad - 1:
            count = (good + bad) // 2
            if (found := _blocks_of(sizes[:count], fmt, top)) is None:
                bad = count
            else:
                good, blocks = count, found
    assert blocks is not None, "a block of zeros overflows nothing"
    return blocks, good - 1


def _blocks_of(sizes: Array, fmt: Format, top: float | None) -> Blocks | None:
    extremes = Extremes(-sizes, sizes, np.zeros(len(sizes), bool))
    absmax = np.nan if top is None else top
    try:
        blocks = fit_blocks(extremes, fmt, tensor_absmax=absmax, partial=False)
    except ValueError:  # a scale overflows what stores it
        return None
    return None if may_overflow(blocks, fmt) else blocks


def _keys(blocks: Blocks) -> Array:
    """Return a number (uint64) for the parameters of each block, by their bits."""
    factor = np.where(blocks.usable, blocks.factor.view(np.uint32), UNUSABLE).astype(np.uint64)
    return factor << np.uint64(32) | blocks.scale.view(np.uint32)


def _grids(blocks: Blocks) -> Array:
    return 1 + np.unique(_keys(blocks), return_inverse=True)[1].astype(np.uint32)


def _table(blocks: Blocks, grid: Array) -> Table:
    divide, factor = bool(blocks.divide[0]), blocks.factor
    fraction, exponent = np.frexp(factor)
    powers = bool(((fraction == 0.5) & (exponent > SMALLEST)).all())
    if divide and powers:
        # the product is the quotient, rounded once as well
        divide, factor = False, np.where(blocks.usable, 1 / factor, np.float32(0))
    if not divide:
        return Table(grid, factor, factor, blocks.scale, None, powers)
    # 0 where the scale says nothing, so that ratios are 0
    reciprocal = np.where(blocks.usable, 1 / factor.astype(np.float64), 0)
    size = np.abs(np.log2(np.abs(factor.astype(np.float64))))
    grid = np.where(size > MOST_BINADES, np.uint32(NO_GRID), grid)
    with np.errstate(over="ignore"):
        gain = reciprocal.astype(np.float32)
    return Table(grid, factor, gain, blocks.scale, reciprocal, powers)
