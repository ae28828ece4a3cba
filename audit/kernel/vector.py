"""Drives `tile` over the blocks of a piece, and counts the places of its weights.

In: the stored weights of whole blocks, a format that `is_in_registers`, and the `entries.BlockEntries` of the blocks.
Out: `Totals`, or None where the scalar kernel must do it. The codes that flip where every weight grows by a tenth:

>>> w = np.linspace(-1, 1, 128, dtype=np.float32).astype(ml_dtypes.bfloat16)
>>> pair = w.view(np.uint16), (1.1 * w.astype(np.float32)).astype(w.dtype).view(np.uint16)
>>> entries = entries_of_magnitudes(format_named("nf4-b64"), None, None, size=64, count=2)
>>> measure_registers(pair, 64, format_named("nf4-b64"), entries, available_paths()[0]).counts[:, FLIPS]
array([34,  0])
"""

# pyright: reportCallIssue=false
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated, assignment, unused-ignore"
# Compiled functions have types of their own, by what they are called with.

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from unforgotten.audit.kernel.bits import block_magnitudes
from unforgotten.audit.kernel.compiled import compiled
from unforgotten.audit.kernel.entries import NO_GRID, BlockEntries
from unforgotten.audit.kernel.lanes import LANES
from unforgotten.audit.kernel.simd import VECTOR_PATHS
from unforgotten.audit.kernel.slots import (
    BIN_BITS,
    BINADES,
    BINS,
    COUNTS,
    DELTA,
    EXPECTED,
    FIRST_BIN,
    FIXED,
    MOST_BLOCKS,
    OWN_BINS,
    PINNED,
    SQUARES,
    STAYED,
    SUMS,
    TILE,
    VARIANCE,
)
from unforgotten.audit.kernel.stored_weights import own_memory
from unforgotten.audit.kernel.structures import Pair, Tile, new_scratch, no_sums
from unforgotten.audit.kernel.tile import measure_tile
from unforgotten.audit.kernel.vector_rules import lattice_rule, vector_rule
from unforgotten.theory.formats.names import Format

Array = NDArray[Any]
UNROLLED = 2  # groups of a block that are worth code without a loop
TALLIES = 4 << 16  # bytes of a count for each 16 bits that a weight's bin and binade can be
NOWHERE = 0xFFFF  # the place of what is no weight; no binade has that number


class Totals(NamedTuple):
    """What `scalar.measure` adds up, of some blocks; and what needs no format.

    Attributes:
        counts: counts of both grids, see `scalar.measure`.
        sums: sums of both grids, see `scalar.measure`.
        bins: histogram of positions, see `scalar.measure`.
        delta_sq: the squared length of delta.
        weights: counts of bfloat16 weights by the binade before, see `theory.geometry.dead_zone.count_binades`.
        moved: counts of those weights that moved.
    """

    counts: Array
    sums: Array
    bins: Array
    delta_sq: float
    weights: Array
    moved: Array


def measure_registers(
    pair: tuple[Array, Array], size: int, fmt: Format, entries: BlockEntries, simd: str, *, census: bool = True
) -> Totals | None:
    """Measure whole blocks of `size`, a multiple of LANES, in a format that `is_in_registers`.

    Args:
        pair: weights before and after, uint16 (bfloat16) or float32.
        size: number of weights of a block.
        fmt: the format.
        simd: path, one of `simd.VECTOR_PATHS`, that this process can run.
        entries: entries of the blocks; where they are not filled yet, they are after the first format.
        census: whether to count what needs no format; if not, it is nan and zeros.

    Returns:
        None if a block exceeds what the table or the kernel is good for.
    """
    sums, bins, binades = no_sums(), np.zeros(BINS, np.int64), np.zeros((2, BINADES), np.int64)
    tallies = own_memory("tallies", TALLIES, 0).view(np.uint32)
    is_bfloat16 = pair[0].itemsize == 2
    rule = (is_bfloat16 and entries.table.powers and lattice_rule(fmt)) or vector_rule(fmt)
    groups = size // LANES
    unrolled = (0,) * groups if groups <= UNROLLED else None
    counted = binades if census else None
    if not MEASURE_BLOCKS[simd](Pair(*pair), size, unrolled, rule, entries, sums, bins, counted, tallies):
        tallies[:] = 0  # of the blocks before, which the next call must not find
        return None
    counts = sums.same_grid_counts + sums.new_grid_counts
    found = sums.same_grid.sum(axis=2) + sums.new_grid.sum(axis=2)
    found[:, VARIANCE] = found[:, EXPECTED] - found[:, SQUARES]
    found[:, EXPECTED] += counts[:, PINNED]  # those have no variance
    delta_sq = float(found[FIXED, DELTA]) if census else math.nan
    return Totals(counts[:, :COUNTS], found[:, :SUMS], bins, delta_sq, *binades)


def _put_reciprocal(reciprocals: Any, k: Any, column: Any, entry: Any) -> None:
    """Put an entry of a column into its place, where there is a column; for compiled code."""


@overload(_put_reciprocal)
def _put_reciprocal_of(reciprocals, k, column, entry):
    if isinstance(column, types.NoneType):
        return lambda reciprocals, k, column, entry: None

    def put(reciprocals, k, column, entry):
        reciprocals[k] = column[entry]

    return put


def _driver(simd: str) -> Any:
    """Return the driver for one instruction set."""

    @compiled()
    def measure_blocks(pair, size, unrolled, rule, entries, sums, bins, census, tallies):
        """Measure whole blocks, tile by tile; return whether all of them are what the table and the kernel are good for.

        Args:
            pair: `Pair`.
            size: weights of a block.
            unrolled: see `measure_tile`.
            rule: `VectorRule`.
            entries: `BlockEntries`, which are filled here unless they are.
            sums: `Sums`, added to.
            bins: int64 (BINS,), added to.
            census: int64 (2, BINADES), weights and moved weights by binade, added to; None where they are not counted.
            tallies: uint32, zeros, which they are again where all blocks are measured.
        """
        scratch = new_scratch(tallies)
        numbers, gains, places = scratch.numbers, scratch.gains, scratch.places
        before, after = entries.before, entries.after
        table = entries.table
        places[1] = NOWHERE
        turn = 0
        counted = 0
        total = len(pair.before)
        begin = 0
        while begin < total:
            first = begin // size
            if size <= TILE:
                last = min(first + TILE // size, total // size)
                end = last * size
                groups = size // LANES
            else:
                last = first + 1
                end = min(begin + TILE, last * size)
                groups = (end - begin) // LANES
            if not entries.filled and begin == first * size:
                tops = block_magnitudes(
                    pair.before, pair.after, first, last, size // LANES, entries.shift, before, after, entries.absmax
                )
                if tops[0] > entries.limits[0] or tops[1] > entries.limits[1]:
                    return False
            same_grid = new_grid = 0
            missing = False
            for block in range(np.uint64(first), np.uint64(last)):
                old, new = before[block], after[block]
                missing |= (table.grid_id[old] == NO_GRID) | (table.grid_id[new] == NO_GRID)
                same = table.grid_id[old] == table.grid_id[new]
                k = np.uint64(same_grid if same else MOST_BLOCKS - 1 - new_grid)
                same_grid += same
                new_grid += not same
                numbers[k], gains[k] = block, table.gain[old]
                _put_reciprocal(scratch.reciprocals, k, table.reciprocal, old)
            if missing:
                return False
            tile = Tile(begin, groups, size, same_grid, new_grid, turn)
            measure_tile(pair, rule, entries, sums, scratch, tile, census, unrolled, simd)
            for i in range(end - begin, counted):
                tallies[places[1 - turn, i]] += np.uint32(1)
            counted = end - begin
            if counted < TILE:
                places[turn, counted:] = NOWHERE
            turn = 1 - turn
            begin = end
        for i in range(counted):
            tallies[places[1 - turn, i]] += np.uint32(1)
        tallies[NOWHERE] = 0
        binades = 1 if census is None else BINADES
        for k in range(binades):
            row = tallies[k << BIN_BITS : (k << BIN_BITS) + OWN_BINS]
            if census is not None:
                for i in range(OWN_BINS):
                    census[0, k] += row[i]
                for i in range(STAYED):
                    census[1, k] += row[i]
            for i in range(BINS):
                bins[i] += row[FIRST_BIN + i]
            row[:] = 0
        return True

    return measure_blocks


MEASURE_BLOCKS: Mapping[str, Any] = {path: _driver(path) for path in VECTOR_PATHS}
"""The drivers, each compiled on its first call, which needs the instructions: see `simd.available_paths`."""
