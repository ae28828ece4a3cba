"""Drives `kernel_vector` over the blocks of a piece, and counts the places of its weights."""

# pyright: reportCallIssue=false
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated, assignment, unused-ignore"
# Compiled functions have types of their own, by what they are called with.

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit import kernel_bits, kernel_lanes, kernel_vector
from unforgotten.audit.compiled import compiled
from unforgotten.audit.kernel_bits import block_sizes
from unforgotten.audit.kernel_fit import Fit
from unforgotten.audit.kernel_lanes import LANES
from unforgotten.audit.kernel_tables import vector_rule
from unforgotten.audit.kernel_vector import (
    BIN_BITS,
    BINADES,
    BINS,
    BY_BUCKET,
    BY_HALVING,
    BY_ROUNDING,
    DELTA,
    DOT,
    EXPECTED,
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
PLACE, SHIFT, SHIFT2, SHIFT3 = np.uint64(0xFFFF), np.uint64(16), np.uint64(32), np.uint64(48)
# by the way to a code (halving, a bucket, rounding) and whether they multiply or divide
KEEPS_HM, MOVES_HM = PARTS[False, True, BY_HALVING], PARTS[False, False, BY_HALVING]
KEEPS_BM, MOVES_BM = PARTS[False, True, BY_BUCKET], PARTS[False, False, BY_BUCKET]
KEEPS_RM, MOVES_RM = PARTS[False, True, BY_ROUNDING], PARTS[False, False, BY_ROUNDING]
KEEPS_HD, MOVES_HD = PARTS[True, True, BY_HALVING], PARTS[True, False, BY_HALVING]
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


def measure_registers(pair: tuple[Array, Array], size: int, fmt: Format, fit: Fit) -> Totals | None:
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
    within = measure_blocks(
        *pair, size, vector_rule(fmt), *fit, kept, moved, kept_n, moved_n, bins, weights, movers,
        tallies,
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
        bins, float(sums[0, DELTA]), weights, movers,
    )  # fmt: skip


def _compiled(stamp: str) -> Any:
    """The driver. The stamp of the code that it inlines is a part of it, so that its cache knows when that changes."""

    # fmt: off
    @compiled()
    def measure_blocks(
        x, y, size, rule, table, e, e_new, setter, fitted, limits, shift, kept, moved, kept_n, moved_n,
        bins, weights, movers, tallies,
    ):
        stamp  # noqa: B018 # pyright: ignore[reportUnusedExpression]
        narrow, wide, constants, way = rule
        divide, usable, f, s, r = table
        places = np.empty(TILE, np.uint16)
        words = places.view(np.uint64)
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
            n_keep = n_move = 0
            for block in range(first, last):
                old, new = e[block], e_new[block]
                same = (f[old] == f[new]) & (s[old] == s[new]) & (usable[old] == usable[new])
                keep[n_keep] = move[n_move] = block
                n_keep += same
                n_move += not same
            if not divide and way == BY_HALVING:
                KEEPS_HM(x, y, begin, g, size, narrow, wide, constants, f, s, r, e, e_new, setter, keep, n_keep, kept, kept_n, places)
                MOVES_HM(x, y, begin, g, size, narrow, wide, constants, f, s, r, e, e_new, setter, move, n_move, moved, moved_n, places)
            elif not divide and way == BY_BUCKET:
                KEEPS_BM(x, y, begin, g, size, narrow, wide, constants, f, s, r, e, e_new, setter, keep, n_keep, kept, kept_n, places)
                MOVES_BM(x, y, begin, g, size, narrow, wide, constants, f, s, r, e, e_new, setter, move, n_move, moved, moved_n, places)
            elif not divide and way == BY_ROUNDING:
                KEEPS_RM(x, y, begin, g, size, narrow, wide, constants, f, s, r, e, e_new, setter, keep, n_keep, kept, kept_n, places)
                MOVES_RM(x, y, begin, g, size, narrow, wide, constants, f, s, r, e, e_new, setter, move, n_move, moved, moved_n, places)
            elif divide and way == BY_HALVING:
                KEEPS_HD(x, y, begin, g, size, narrow, wide, constants, f, s, r, e, e_new, setter, keep, n_keep, kept, kept_n, places)
                MOVES_HD(x, y, begin, g, size, narrow, wide, constants, f, s, r, e, e_new, setter, move, n_move, moved, moved_n, places)
            elif divide and way == BY_BUCKET:
                KEEPS_BD(x, y, begin, g, size, narrow, wide, constants, f, s, r, e, e_new, setter, keep, n_keep, kept, kept_n, places)
                MOVES_BD(x, y, begin, g, size, narrow, wide, constants, f, s, r, e, e_new, setter, move, n_move, moved, moved_n, places)
            else:
                KEEPS_RD(x, y, begin, g, size, narrow, wide, constants, f, s, r, e, e_new, setter, keep, n_keep, kept, kept_n, places)
                MOVES_RD(x, y, begin, g, size, narrow, wide, constants, f, s, r, e, e_new, setter, move, n_move, moved, moved_n, places)
            for i in range((end - begin) // 4):
                word = words[i]
                tallies[word & PLACE] += np.uint32(1)
                tallies[(word >> SHIFT) & PLACE] += np.uint32(1)
                tallies[(word >> SHIFT2) & PLACE] += np.uint32(1)
                tallies[word >> SHIFT3] += np.uint32(1)
            begin = end
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
                    bins[i] += row[i]
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
