"""Drives `kernel_vector` over the blocks of a piece, and counts the places of its weights."""

# pyright: reportCallIssue=false
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated, assignment, unused-ignore"
# Compiled functions have types of their own, by what they are called with.

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit import kernel_bits, kernel_lanes, kernel_vector
from unforgotten.audit.compiled import compiled
from unforgotten.audit.kernel_bits import block_sizes
from unforgotten.audit.kernel_fit import NO_GRID, Fit
from unforgotten.audit.kernel_lanes import LANES
from unforgotten.audit.kernel_tables import lattice_rule, vector_rule
from unforgotten.audit.kernel_vector import (
    BIN_BITS,
    BINADES,
    BINS,
    BY_BUCKET,
    BY_BUCKET_AND_TWO,
    BY_ROUNDING,
    DELTA,
    DOT,
    EXPECTED,
    FIRST_BIN,
    OWN_BINS,
    PARTS,
    SQUARES,
    STAYED,
    SURVIVING,
)  # fmt: skip
from unforgotten.audit.stored_weights import own_memory
from unforgotten.theory.formats import Format

Array = NDArray[Any]
TILE = 2048
TALLIES = 4 << 16  # bytes of a count for each 16 bits that a weight's bin and binade can be
NOWHERE = 0xFFFF  # the place of what is no weight; no binade has that number
# by the way to a code (a bucket and two, a bucket, rounding) and whether they multiply or divide
KEEPS_TM, MOVES_TM = PARTS[False, True, BY_BUCKET_AND_TWO], PARTS[False, False, BY_BUCKET_AND_TWO]
KEEPS_BM, MOVES_BM = PARTS[False, True, BY_BUCKET], PARTS[False, False, BY_BUCKET]
KEEPS_RM, MOVES_RM = PARTS[False, True, BY_ROUNDING], PARTS[False, False, BY_ROUNDING]
KEEPS_TD, MOVES_TD = PARTS[True, True, BY_BUCKET_AND_TWO], PARTS[True, False, BY_BUCKET_AND_TWO]
KEEPS_BD, MOVES_BD = PARTS[True, True, BY_BUCKET], PARTS[True, False, BY_BUCKET]
KEEPS_RD, MOVES_RD = PARTS[True, True, BY_ROUNDING], PARTS[True, False, BY_ROUNDING]


class Totals(NamedTuple):
    """What `kernel.measure` adds up, of some blocks; and what needs no format.

    Attributes:
        counts: see `kernel.measure`.
        sums: likewise.
        bins: likewise.
        delta_sq: the squared length of delta.
        weights: if they are bfloat16, by the binade before, see `theory.dead_zone.count_binades`.
        moved: those of them that moved.
    """

    counts: Array
    sums: Array
    bins: Array
    delta_sq: float
    weights: Array
    moved: Array


def measure_registers(
    pair: tuple[Array, Array], size: int, fmt: Format, fit: Fit, *, is_first: bool = True
) -> Totals | None:
    """Whole blocks of `size`, a multiple of LANES, in a format that `fits_registers`.

    Args:
        pair: weights before and after, uint16 (bfloat16) or float32.
        size: of a block.
        fmt: the format.
        fit: of the blocks; where it does not know them yet, it does after the first format.

    Returns:
        None if a magnitude exceeds the limits of the fit.
    """
    kept, moved = np.zeros((1, 5, 8)), np.zeros((2, 5, 8))
    kept_n, moved_n = np.zeros((1, 3), np.int64), np.zeros((2, 3), np.int64)
    bins, weights, movers = (np.zeros(n, np.int64) for n in (BINS, BINADES, BINADES))
    tallies = own_memory("tallies", TALLIES, 0).view(np.uint32)
    bits = pair[0].itemsize == 2
    rule = (bits and fit.table.powers and lattice_rule(fmt)) or vector_rule(fmt)
    within = measure_blocks(
        *pair, size, rule, *fit, kept, moved, kept_n, moved_n, bins, weights, movers,
        tallies, is_first,
    )  # fmt: skip
    if not within:
        tallies[:] = 0  # of the blocks before, which the next call must not find
        return None
    sums, counts = kept.sum(axis=2) + moved.sum(axis=2), kept_n + moved_n  # fixed, adaptive
    expected, squares = sums[:, EXPECTED], sums[:, SQUARES]
    flips, changes, pinned = counts.T
    return Totals(
        np.stack([flips, changes, np.zeros_like(flips)], axis=1)[::-1].copy(),
        np.stack([expected + pinned, expected - squares, sums[:, SURVIVING], sums[:, DOT]], axis=1)[::-1].copy(),
        bins, float(sums[0, DELTA]) if is_first else math.nan, weights, movers,
    )  # fmt: skip


def _compiled(stamp: str) -> Any:
    """The driver. The stamp of the code that it inlines is a part of it, so that its cache knows when that changes."""

    # fmt: off
    @compiled()
    def measure_blocks(
        x, y, size, rule, table, e, e_new, setter, fitted, limits, shift, kept, moved, kept_n, moved_n,
        bins, weights, movers, tallies, is_first,
    ):
        stamp  # noqa: B018 # pyright: ignore[reportUnusedExpression]
        narrow, wide, constants, way = rule
        divide, _, grid, f, g32, s, r = table
        both = np.empty((2, TILE), np.uint16)
        both[1] = NOWHERE
        turn = 0
        counted = 0
        codes = np.empty(TILE, np.int32)
        close, flipped = np.empty(TILE // LANES + 1, np.int64), np.empty(TILE // LANES + 1, np.int64)
        keep, move = np.empty(TILE // LANES + 1, np.uint32), np.empty(TILE // LANES + 1, np.uint32)
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
                top = block_sizes(x, first, last, size // LANES, 0, e)
                if top > limits[0] or block_sizes(y, first, last, size // LANES, shift, e_new) > limits[1]:
                    return False
                for block in range(first, last):
                    setter[block] = np.uint32(e[block] << 16).view(np.float32)
            places, last_places = both[turn], both[1 - turn]
            n_keep = n_move = 0
            for block in range(first, last):
                old, new = grid[e[block]], grid[e_new[block]]
                if old == NO_GRID or new == NO_GRID:
                    return False
                same = old == new
                keep[n_keep] = move[n_move] = block
                n_keep += same
                n_move += not same
            if not divide and way == BY_BUCKET_AND_TWO:
                if n_keep:
                    KEEPS_TM(x, y, begin, g, size, narrow, wide, constants, f, g32, s, r, e, e_new, setter, keep, n_keep, kept, kept_n, codes, places, close, flipped, last_places, 0, tallies, is_first)
                if n_move:
                    MOVES_TM(x, y, begin, g, size, narrow, wide, constants, f, g32, s, r, e, e_new, setter, move, n_move, moved, moved_n, codes, places, close, flipped, last_places, n_keep * g * LANES, tallies, is_first)
            elif not divide and way == BY_BUCKET:
                if n_keep:
                    KEEPS_BM(x, y, begin, g, size, narrow, wide, constants, f, g32, s, r, e, e_new, setter, keep, n_keep, kept, kept_n, codes, places, close, flipped, last_places, 0, tallies, is_first)
                if n_move:
                    MOVES_BM(x, y, begin, g, size, narrow, wide, constants, f, g32, s, r, e, e_new, setter, move, n_move, moved, moved_n, codes, places, close, flipped, last_places, n_keep * g * LANES, tallies, is_first)
            elif not divide and way == BY_ROUNDING:
                if n_keep:
                    KEEPS_RM(x, y, begin, g, size, narrow, wide, constants, f, g32, s, r, e, e_new, setter, keep, n_keep, kept, kept_n, codes, places, close, flipped, last_places, 0, tallies, is_first)
                if n_move:
                    MOVES_RM(x, y, begin, g, size, narrow, wide, constants, f, g32, s, r, e, e_new, setter, move, n_move, moved, moved_n, codes, places, close, flipped, last_places, n_keep * g * LANES, tallies, is_first)
            elif divide and way == BY_BUCKET_AND_TWO:
                if n_keep:
                    KEEPS_TD(x, y, begin, g, size, narrow, wide, constants, f, g32, s, r, e, e_new, setter, keep, n_keep, kept, kept_n, codes, places, close, flipped, last_places, 0, tallies, is_first)
                if n_move:
                    MOVES_TD(x, y, begin, g, size, narrow, wide, constants, f, g32, s, r, e, e_new, setter, move, n_move, moved, moved_n, codes, places, close, flipped, last_places, n_keep * g * LANES, tallies, is_first)
            elif divide and way == BY_BUCKET:
                if n_keep:
                    KEEPS_BD(x, y, begin, g, size, narrow, wide, constants, f, g32, s, r, e, e_new, setter, keep, n_keep, kept, kept_n, codes, places, close, flipped, last_places, 0, tallies, is_first)
                if n_move:
                    MOVES_BD(x, y, begin, g, size, narrow, wide, constants, f, g32, s, r, e, e_new, setter, move, n_move, moved, moved_n, codes, places, close, flipped, last_places, n_keep * g * LANES, tallies, is_first)
            else:
                if n_keep:
                    KEEPS_RD(x, y, begin, g, size, narrow, wide, constants, f, g32, s, r, e, e_new, setter, keep, n_keep, kept, kept_n, codes, places, close, flipped, last_places, 0, tallies, is_first)
                if n_move:
                    MOVES_RD(x, y, begin, g, size, narrow, wide, constants, f, g32, s, r, e, e_new, setter, move, n_move, moved, moved_n, codes, places, close, flipped, last_places, n_keep * g * LANES, tallies, is_first)
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
        for k in range(BINADES):
            row = tallies[k << BIN_BITS : (k << BIN_BITS) + OWN_BINS]
            count = 0
            for i in range(OWN_BINS):
                count += np.int64(row[i])
            if count:
                weights[k] += count
                for i in range(STAYED):
                    movers[k] += np.int64(row[i])
                for i in range(BINS):
                    bins[i] += row[FIRST_BIN + i]
                row[:] = 0
        return True

    # fmt: on
    return measure_blocks


def _stamp() -> str:
    """A digest of the code that the driver inlines."""
    sources = (
        Path(m.__file__ or "").read_bytes() for m in (kernel_bits, kernel_lanes, kernel_vector)
    )
    return hashlib.sha256(b"".join(sources)).hexdigest()


measure_blocks = _compiled(_stamp())
