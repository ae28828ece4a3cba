"""Drives `tile` over the blocks of a piece, and counts the places of its weights."""

# pyright: reportCallIssue=false
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated, assignment, unused-ignore"
# Compiled functions have types of their own, by what they are called with.

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.kernel.bits import block_sizes
from unforgotten.audit.kernel.compiled import compiled
from unforgotten.audit.kernel.entries import NO_GRID, Fit
from unforgotten.audit.kernel.lanes import LANES
from unforgotten.audit.kernel.simd import VECTOR_PATHS
from unforgotten.audit.kernel.slots import (
    ALL_COUNTS,
    ALL_SUMS,
    BIN_BITS,
    BINADES,
    BINS,
    COUNTS,
    DELTA,
    EXPECTED,
    FIRST_BIN,
    FIXED,
    GRIDS,
    MOST,
    OWN_BINS,
    PINNED,
    SQUARES,
    STAYED,
    SUMS,
    TILE,
    VARIANCE,
)
from unforgotten.audit.kernel.stored_weights import own_memory
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
    pair: tuple[Array, Array], size: int, fmt: Format, fit: Fit, simd: str, *, census: bool = True
) -> Totals | None:
    """Measure whole blocks of `size`, a multiple of LANES, in a format that `fits_registers`.

    Args:
        pair: weights before and after, uint16 (bfloat16) or float32.
        size: number of weights of a block.
        fmt: the format.
        simd: path, one of `simd.VECTOR_PATHS`, that this process can run.
        fit: fit of the blocks; where it does not know them yet, it does after the first format.
        census: whether to count what needs no format; if not, it is nan and zeros.

    Returns:
        None if a block exceeds what the fit or the kernel is good for.
    """
    kept, moved = np.zeros((1, ALL_SUMS, 8)), np.zeros((len(GRIDS), ALL_SUMS, 8))
    kept_n, moved_n = np.zeros((1, ALL_COUNTS), np.int64), np.zeros((len(GRIDS), ALL_COUNTS), np.int64)
    bins, binades = np.zeros(BINS, np.int64), np.zeros((2, BINADES), np.int64)
    tallies = own_memory("tallies", TALLIES, 0).view(np.uint32)
    table, *entries, known, limits, shift = fit
    bits = pair[0].itemsize == 2
    rule = (bits and table.powers and lattice_rule(fmt)) or vector_rule(fmt)
    groups = size // LANES
    few = (0,) * groups if groups <= UNROLLED else None
    within = MEASURE_BLOCKS[simd](
        *pair,
        size,
        few,
        *rule,
        *table[:-1],
        *entries,
        known,
        limits,
        shift,
        kept,
        moved,
        kept_n,
        moved_n,
        bins,
        binades if census else None,
        tallies,
    )
    if not within:
        tallies[:] = 0  # of the blocks before, which the next call must not find
        return None
    sums, counts = kept.sum(axis=2) + moved.sum(axis=2), kept_n + moved_n
    sums[:, VARIANCE] = sums[:, EXPECTED] - sums[:, SQUARES]
    sums[:, EXPECTED] += counts[:, PINNED]  # those have no variance
    return Totals(counts[:, :COUNTS], sums[:, :SUMS], bins, float(sums[FIXED, DELTA]) if census else math.nan, *binades)


def _compiled(simd: str) -> Any:
    """Return the driver for one instruction set."""

    @compiled()
    def measure_blocks(
        x,
        y,
        size,
        few,
        narrow,
        wide,
        two,
        dense,
        constants,
        grid,
        factor,
        gain,
        scale,
        reciprocal,
        e,
        e_new,
        setter,
        fitted,
        limits,
        shift,
        kept,
        moved,
        kept_n,
        moved_n,
        bins,
        census,
        tallies,
    ):
        both = np.empty((2, TILE), np.uint16)
        both[1] = NOWHERE
        turn = 0
        counted = 0
        codes = np.empty(TILE, np.int32)
        close, flipped = np.empty(MOST + 1, np.int64), np.empty(MOST + 1, np.int64)
        blocks = np.empty(MOST, np.uint32)
        nears, wides = np.empty(MOST, np.float32), np.empty(MOST, np.float64)
        total = len(x)
        begin = 0
        while begin < total:
            first = begin // size
            if size <= TILE:
                last = min(first + TILE // size, total // size)
                end = last * size
                g = size // LANES
            else:
                last = first + 1
                end = min(begin + TILE, last * size)
                g = (end - begin) // LANES
            if not fitted and begin == first * size:
                tops = block_sizes(x, y, first, last, size // LANES, shift, e, e_new, setter)
                if tops[0] > limits[0] or tops[1] > limits[1]:
                    return False
            places, last_places = both[turn], both[1 - turn]
            n_keep = n_move = 0
            missing = False
            for block in range(np.uint64(first), np.uint64(last)):
                old, new = e[block], e_new[block]
                missing |= (grid[old] == NO_GRID) | (grid[new] == NO_GRID)
                same = grid[old] == grid[new]
                k = np.uint64(n_keep if same else MOST - 1 - n_move)
                n_keep += same
                n_move += not same
                blocks[k], nears[k] = block, gain[old]
                if reciprocal is not None:
                    wides[k] = reciprocal[old]
            if missing:
                return False
            if few is None:
                measure_tile(
                    x,
                    y,
                    begin,
                    g,
                    size,
                    narrow,
                    wide,
                    two,
                    dense,
                    constants,
                    factor,
                    gain,
                    scale,
                    reciprocal,
                    e,
                    e_new,
                    setter,
                    blocks,
                    nears,
                    wides,
                    n_keep,
                    n_move,
                    kept,
                    moved,
                    kept_n,
                    moved_n,
                    codes,
                    places,
                    close,
                    flipped,
                    last_places,
                    tallies,
                    census,
                    simd,
                )
            else:
                measure_tile(
                    x,
                    y,
                    begin,
                    few,
                    size,
                    narrow,
                    wide,
                    two,
                    dense,
                    constants,
                    factor,
                    gain,
                    scale,
                    reciprocal,
                    e,
                    e_new,
                    setter,
                    blocks,
                    nears,
                    wides,
                    n_keep,
                    n_move,
                    kept,
                    moved,
                    kept_n,
                    moved_n,
                    codes,
                    places,
                    close,
                    flipped,
                    last_places,
                    tallies,
                    census,
                    simd,
                )
            for i in range(end - begin, counted):
                tallies[last_places[i]] += np.uint32(1)
            counted = end - begin
            if counted < TILE:
                places[counted:] = NOWHERE
            turn = 1 - turn
            begin = end
        for i in range(counted):
            tallies[both[1 - turn, i]] += np.uint32(1)
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


MEASURE_BLOCKS: Mapping[str, Any] = {path: _compiled(path) for path in VECTOR_PATHS}
"""The drivers, each compiled on its first call, which needs the instructions: see `simd.available_paths`."""
