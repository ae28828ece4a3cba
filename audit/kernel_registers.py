"""Drives `kernel_vector` over the blocks of a piece, and counts the places of its weights."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated, assignment, unused-ignore"
# Compiled functions have types of their own, by what they are called with.

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit import kernel_lanes, kernel_vector
from unforgotten.audit.compiled import compiled
from unforgotten.audit.kernel import float_of
from unforgotten.audit.kernel_lanes import LANES
from unforgotten.audit.kernel_plan import Blocks, Extremes, rule_of
from unforgotten.audit.kernel_tables import BINS, vector_rule
from unforgotten.audit.kernel_vector import (
    BY_ROUNDING,
    DELTA,
    DOT,
    EXPECTED,
    FIRST,
    LAST,
    PARTS,
    SQUARES,
    SURVIVING,
    THRESHOLDS,
    TRASH,
)  # fmt: skip
from unforgotten.theory.formats import Format

Array = NDArray[Any]
TILE = 2048
PLACE, SHIFT, SHIFT2, SHIFT3 = np.uint64(0xFFFF), np.uint64(16), np.uint64(32), np.uint64(48)
# by the way to a code (halving, a bucket, rounding) and whether they multiply or divide
KEEPS_HM, MOVES_HM = PARTS[False, True, 0], PARTS[False, False, 0]
KEEPS_BM, MOVES_BM = PARTS[False, True, 1], PARTS[False, False, 1]
KEEPS_RM, MOVES_RM = PARTS[False, True, 2], PARTS[False, False, 2]
KEEPS_HD, MOVES_HD = PARTS[True, True, 0], PARTS[True, False, 0]
KEEPS_BD, MOVES_BD = PARTS[True, True, 1], PARTS[True, False, 1]
KEEPS_RD, MOVES_RD = PARTS[True, True, 2], PARTS[True, False, 2]


class Totals(NamedTuple):
    """What `kernel.measure` adds up, of some blocks; and the squared length of delta."""

    counts: Array
    sums: Array
    bins: Array
    delta_sq: float


def measure_registers(
    pair: tuple[Array, Array], size: int, fmt: Format, before: Blocks, after: Blocks, extremes: Extremes, same: Array
) -> Totals:  # fmt: skip
    """Whole blocks of `size`, a multiple of LANES, in a format that `fits_registers`.

    Args:
        pair: weights before and after, uint16 (bfloat16) or float32.
        size: of a block.
        fmt: the format.
        before: fitted to the first.
        after: fitted to the second.
        extremes: of the first.
        same: where the grids agree.
    """
    rule = rule_of(fmt)
    kept, moved = np.zeros((1, 5, 8)), np.zeros((2, 5, 8))
    kept_n, moved_n = np.zeros((1, 3), np.int64), np.zeros((2, 3), np.int64)
    bins = np.zeros(BINS, np.int64)
    measure_blocks(
        *pair, size, vector_rule(fmt), rule.width, rule.lower, before.usable, bool(before.divide[0]), same,
        before.factor, after.factor, before.scale, after.scale, _reciprocals(before), _reciprocals(after),
        np.maximum(-extremes.low, extremes.high), kept, moved, kept_n, moved_n, bins,
    )  # fmt: skip
    sums, counts = kept.sum(axis=2) + moved.sum(axis=2), kept_n + moved_n  # fixed, adaptive
    expected, squares = sums[:, EXPECTED], sums[:, SQUARES]
    flips, changes, pinned = counts.T
    return Totals(
        np.stack([flips, changes, np.zeros_like(flips)], axis=1)[::-1].copy(),
        np.stack([expected + pinned, expected - squares, sums[:, SURVIVING], sums[:, DOT]], axis=1)[::-1].copy(),
        bins, float(sums[0, DELTA]),
    )  # fmt: skip


def _reciprocals(blocks: Blocks) -> Array:
    """Float64 1 / factor of every block that divides, 0 where the scale says nothing, so that ratios are 0."""
    if not blocks.divide[0]:
        return np.zeros(1)
    with np.errstate(divide="ignore"):
        return np.where(blocks.usable, 1 / blocks.factor.astype(np.float64), 0)


@compiled()
def _exact_bin(stored, divide, factor, usable, narrow, constants, way, lower, width):
    """The bin of one weight by the operations of `kernel.measure`."""
    w = float_of(stored)
    ratio, v = w * factor, np.float64(w) * np.float64(factor)
    if divide:
        ratio, v = w / factor, np.float64(w) / np.float64(factor)
    if not usable:
        ratio, v = np.float32(0), 0.0
    code = 0
    if way == BY_ROUNDING:
        code = np.int64(
            min(max(np.rint(ratio), constants[FIRST]), constants[LAST]) - constants[FIRST]
        )
    else:
        for k in range(LANES - 1):
            code += ratio > narrow[THRESHOLDS, k]
    place = (v - lower[code]) / width[code]
    return np.uint16(min(max(place, 0.0) * BINS, BINS - 1.0))


def _compiled(stamp: str) -> Any:
    """The driver. The stamp of the code that it inlines is a part of it, so that its cache knows when that changes."""

    # fmt: off
    @compiled()
    def measure_blocks(
        x, y, size, rule, width, lower, usable, divide, same, f, f_new, s, s_new, r, r_new, setter, kept, moved, kept_n,
        moved_n, bins,
    ):
        stamp  # noqa: B018 # pyright: ignore[reportUnusedExpression]
        narrow, wide, constants, way = rule
        places, near = np.empty(TILE, np.uint16), np.empty(TILE // LANES, np.uint16)
        words = places.view(np.uint64)
        tallies = np.zeros((4, TRASH + 1), np.uint32)
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
            n_keep = n_move = 0
            for block in range(first, last):
                keep[n_keep] = move[n_move] = block
                n_keep += same[block]
                n_move += not same[block]
            if not divide and way == 0:
                KEEPS_HM(x, y, begin, g, size, narrow, wide, constants, f, f_new, s, s_new, r, r_new, setter, keep, n_keep, kept, kept_n, places, near)
                MOVES_HM(x, y, begin, g, size, narrow, wide, constants, f, f_new, s, s_new, r, r_new, setter, move, n_move, moved, moved_n, places, near)
            elif not divide and way == 1:
                KEEPS_BM(x, y, begin, g, size, narrow, wide, constants, f, f_new, s, s_new, r, r_new, setter, keep, n_keep, kept, kept_n, places, near)
                MOVES_BM(x, y, begin, g, size, narrow, wide, constants, f, f_new, s, s_new, r, r_new, setter, move, n_move, moved, moved_n, places, near)
            elif not divide:
                KEEPS_RM(x, y, begin, g, size, narrow, wide, constants, f, f_new, s, s_new, r, r_new, setter, keep, n_keep, kept, kept_n, places, near)
                MOVES_RM(x, y, begin, g, size, narrow, wide, constants, f, f_new, s, s_new, r, r_new, setter, move, n_move, moved, moved_n, places, near)
            elif way == 0:
                KEEPS_HD(x, y, begin, g, size, narrow, wide, constants, f, f_new, s, s_new, r, r_new, setter, keep, n_keep, kept, kept_n, places, near)
                MOVES_HD(x, y, begin, g, size, narrow, wide, constants, f, f_new, s, s_new, r, r_new, setter, move, n_move, moved, moved_n, places, near)
            elif way == 1:
                KEEPS_BD(x, y, begin, g, size, narrow, wide, constants, f, f_new, s, s_new, r, r_new, setter, keep, n_keep, kept, kept_n, places, near)
                MOVES_BD(x, y, begin, g, size, narrow, wide, constants, f, f_new, s, s_new, r, r_new, setter, move, n_move, moved, moved_n, places, near)
            else:
                KEEPS_RD(x, y, begin, g, size, narrow, wide, constants, f, f_new, s, s_new, r, r_new, setter, keep, n_keep, kept, kept_n, places, near)
                MOVES_RD(x, y, begin, g, size, narrow, wide, constants, f, f_new, s, s_new, r, r_new, setter, move, n_move, moved, moved_n, places, near)
            for group in range((end - begin) // LANES):
                if near[group]:
                    for k in range(LANES):
                        if (near[group] >> k) & 1:
                            i = group * LANES + k
                            b = (begin + i) // size
                            places[i] = _exact_bin(x[begin + i], divide, f[b], usable[b], narrow, constants, way, lower, width)
            for i in range((end - begin) // 4):
                word = words[i]
                tallies[0, word & PLACE] += np.uint32(1)
                tallies[1, (word >> SHIFT) & PLACE] += np.uint32(1)
                tallies[2, (word >> SHIFT2) & PLACE] += np.uint32(1)
                tallies[3, word >> SHIFT3] += np.uint32(1)
            begin = end
        for k in range(4):
            for i in range(BINS):
                bins[i] += tallies[k, i]

    # fmt: on
    return measure_blocks


def _stamp() -> str:
    """A digest of the code that the driver inlines."""
    sources = (Path(m.__file__ or "").read_bytes() for m in (kernel_lanes, kernel_vector))
    return hashlib.sha256(b"".join(sources)).hexdigest()


measure_blocks = _compiled(_stamp())
