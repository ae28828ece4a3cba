"""Drives `kernel_vector` over the blocks of a piece, and counts the places."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from unforgotten.audit import kernel_lanes, kernel_vector
from unforgotten.audit.kernel import float_of
from unforgotten.audit.kernel_lanes import LANES, available
from unforgotten.audit.kernel_plan import Blocks, Extremes, Rule, exact_thresholds, rule_of
from unforgotten.audit.kernel_vector import (
    CODES, DELTA, DOT, EXPECTED, FRACTION, INVERSE, LEVELS, LIMITS, LOWER, PARAMETERS, PARTS, RECIPROCALS, SQUARES, SURVIVING, THRESHOLDS,
    TRASH,
)  # fmt: skip
from unforgotten.theory.formats import Format

Array = NDArray[Any]
TILE = 1024
BINS = 256
KEEPS_M, MOVES_M = PARTS[False, True, False], PARTS[False, False, False]
KEEPS_MB, MOVES_MB = PARTS[False, True, True], PARTS[False, False, True]
KEEPS_D, MOVES_D = PARTS[True, True, False], PARTS[True, False, False]
KEEPS_DB, MOVES_DB = PARTS[True, True, True], PARTS[True, False, True]


class VectorRule(NamedTuple):
    """A format in registers.

    Attributes:
        narrow: float32 (8, 16): thresholds filled with inf, levels, lower ends of the cells, fine bins a code unit; and
            of 32 buckets the code of the smallest ratio, as bits, and the one threshold, inf for none.
        wide: float64 (2, 16): flips a code unit upward, and downward, negative; 0 outward from an end cell.
        constants: float32 (6,), see `kernel_vector`.
        bucketed: whether every bucket has at most one threshold.
    """

    narrow: Array
    wide: Array
    constants: Array
    bucketed: bool


def fits_registers(fmt: Format) -> bool:
    """Whether this machine measures the format sixteen weights at a time, in blocks of whole groups."""
    few = len(fmt.levels) <= LANES and fmt.zero == "none"
    return few and fmt.statistic in ("absmax", "signed-absmax") and available()


@lru_cache(maxsize=64)
def vector_rule(fmt: Format) -> VectorRule:
    """The tables of a format that `fits_registers`.

    A bucket is `rint(steps ratio)` of a ratio cut to ± reach, a function that never falls: so the thresholds of lower
    buckets are below the ratio, those of higher ones above, and where no bucket has two, one comparison is left.
    """
    rule, count = rule_of(fmt), len(fmt.levels)
    narrow, wide = np.zeros((8, LANES), np.float32), np.zeros((2, LANES))
    thresholds = exact_thresholds(fmt)
    narrow[THRESHOLDS] = np.inf
    narrow[THRESHOLDS, : count - 1] = thresholds
    narrow[LEVELS, :count], narrow[LOWER, :count] = rule.levels, rule.lower
    narrow[INVERSE, :count] = BINS * 2.0**FRACTION * rule.inverse
    wide[0, :count], wide[1, :count] = rule.inverse, -rule.inverse
    wide[0, count - 1] = wide[1, 0] = 0
    reach = np.float32(1.02 * np.abs(thresholds[np.isfinite(thresholds)]).max())
    steps = np.float32(15 / reach)
    bucket = np.rint(np.clip(thresholds, -reach, reach).astype(np.float64) * np.float64(steps))
    bucketed = len(np.unique(bucket)) == len(bucket)
    if bucketed:
        every = (np.arange(32) + 16) % 32 - 16  # by the last five bits of the number of the bucket
        codes = np.searchsorted(bucket, every, side="left").astype(np.int32)
        limits = np.append(thresholds, np.float32(np.inf))[codes]
        limits = np.where(np.isin(every, bucket), limits, np.float32(np.inf)).astype(np.float32)
        narrow[CODES : CODES + 2] = codes.view(np.float32).reshape(2, LANES)
        narrow[LIMITS : LIMITS + 2] = limits.reshape(2, LANES)
    edge = _edge(rule)
    around = (1 << FRACTION) - 2 * edge
    constants = np.array([count - 2, rule.unit, edge, around, reach, steps], np.float32)
    return VectorRule(narrow, wide, constants, bucketed)


def _edge(rule: Rule) -> int:
    """Fine bins, a power of two, within which float32 may mistake the side of a bin's end.

    The ratio, the lower end and their difference are rounded once each, to 2^-24 of at most the largest threshold
    v; the inverse and the product once each, to 2^-24 of at most one cell.
    """
    inner = slice(1, len(rule.levels) - 1)
    v = np.abs(np.append(rule.lower[inner], rule.lower[-1])).max()
    cells_off = 2.0**-24 * (3 * v * rule.inverse[inner].max() + 2)
    off = (
        2 * cells_off * BINS * 2.0**FRACTION + 1
    )  # twice for what is left out, and one for the fraction dropped
    return int(2 ** np.ceil(np.log2(off)))


def block_parameters(before: Blocks, after: Blocks, extremes: Extremes) -> tuple[Array, Array]:
    """What `kernel_vector` reads of every block: float32 (blocks, PARAMETERS), float64 (blocks, RECIPROCALS).

    A block whose scale says nothing has ratios of 0: by a factor of 0, or a reciprocal of 0 and a divisor of 1.
    """
    count = len(before.scale)
    narrow = np.zeros((count, PARAMETERS), np.float32)
    wide = np.zeros((count if before.divide[0] else 1, RECIPROCALS))
    for k, blocks in enumerate((before, after)):
        nothing = np.where(blocks.divide, np.float32(1), np.float32(0))
        narrow[:, k] = np.where(blocks.usable, blocks.factor, nothing)
        narrow[:, 2 + k] = blocks.scale
        if before.divide[0]:
            wide[:, k] = np.where(blocks.usable, 1 / narrow[:, k].astype(np.float64), 0)
    narrow[:, 4] = np.maximum(-extremes.low, extremes.high)[:count]
    return narrow, wide


@njit(nogil=True, cache=True, error_model="numpy")
def _exact_bin(stored, divide, factor, usable, narrow, lower, width):  # type: ignore[no-untyped-def]
    """The bin of one weight by the operations of `kernel.measure`."""
    w = float_of(stored)
    ratio, v = w * factor, np.float64(w) * np.float64(factor)
    if divide:
        ratio, v = w / factor, np.float64(w) / np.float64(factor)
    if not usable:
        ratio, v = np.float32(0), 0.0
    code = 0
    for k in range(LANES - 1):
        code += ratio > narrow[THRESHOLDS, k]
    place = (v - lower[code]) / width[code]
    return np.uint16(min(max(place, 0.0) * BINS, BINS - 1.0))


def _compiled(stamp: str) -> Any:
    """The driver. The stamp of the code that it inlines is a part of it, so that its cache knows when that changes."""

    @njit(nogil=True, cache=True, error_model="numpy")
    def measure_blocks(
        x, y, size, rule, width, lower, parameters, reciprocals, usable, divide, same, kept, moved, kept_n, moved_n, bins
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        stamp  # noqa: B018
        narrow, wide, constants, bucketed = rule
        places, near = np.empty(TILE, np.uint16), np.empty(TILE // LANES, np.uint16)
        tallies = np.zeros((4, TRASH + 1), np.uint32)
        total = len(x)
        begin = 0
        while begin < total:
            end = min(begin + (TILE // size * size if size <= TILE else TILE), total)
            at = begin
            while at < end:
                block = at // size
                n = min((block + 1) * size, end) - at
                g, out = n // LANES, at - begin
                if divide and bucketed:
                    if same[block]:
                        KEEPS_DB(
                            x,
                            y,
                            at,
                            g,
                            narrow,
                            wide,
                            constants,
                            parameters,
                            reciprocals,
                            block,
                            kept,
                            kept_n,
                            places,
                            near,
                            out,
                        )
                    else:
                        MOVES_DB(
                            x,
                            y,
                            at,
                            g,
                            narrow,
                            wide,
                            constants,
                            parameters,
                            reciprocals,
                            block,
                            moved,
                            moved_n,
                            places,
                            near,
                            out,
                        )
                elif divide:
                    if same[block]:
                        KEEPS_D(
                            x,
                            y,
                            at,
                            g,
                            narrow,
                            wide,
                            constants,
                            parameters,
                            reciprocals,
                            block,
                            kept,
                            kept_n,
                            places,
                            near,
                            out,
                        )
                    else:
                        MOVES_D(
                            x,
                            y,
                            at,
                            g,
                            narrow,
                            wide,
                            constants,
                            parameters,
                            reciprocals,
                            block,
                            moved,
                            moved_n,
                            places,
                            near,
                            out,
                        )
                elif bucketed:
                    if same[block]:
                        KEEPS_MB(
                            x,
                            y,
                            at,
                            g,
                            narrow,
                            wide,
                            constants,
                            parameters,
                            reciprocals,
                            block,
                            kept,
                            kept_n,
                            places,
                            near,
                            out,
                        )
                    else:
                        MOVES_MB(
                            x,
                            y,
                            at,
                            g,
                            narrow,
                            wide,
                            constants,
                            parameters,
                            reciprocals,
                            block,
                            moved,
                            moved_n,
                            places,
                            near,
                            out,
                        )
                elif same[block]:
                    KEEPS_M(
                        x,
                        y,
                        at,
                        g,
                        narrow,
                        wide,
                        constants,
                        parameters,
                        reciprocals,
                        block,
                        kept,
                        kept_n,
                        places,
                        near,
                        out,
                    )
                else:
                    MOVES_M(
                        x,
                        y,
                        at,
                        g,
                        narrow,
                        wide,
                        constants,
                        parameters,
                        reciprocals,
                        block,
                        moved,
                        moved_n,
                        places,
                        near,
                        out,
                    )
                at += n
            for group in range((end - begin) // LANES):
                if near[group]:
                    for k in range(LANES):
                        if (near[group] >> k) & 1:
                            i = group * LANES + k
                            block = (begin + i) // size
                            places[i] = _exact_bin(
                                x[begin + i],
                                divide,
                                parameters[block, 0],
                                usable[block],
                                narrow,
                                lower,
                                width,
                            )
            for i in range(0, end - begin, 4):
                tallies[0, places[i]] += np.uint32(1)
                tallies[1, places[i + 1]] += np.uint32(1)
                tallies[2, places[i + 2]] += np.uint32(1)
                tallies[3, places[i + 3]] += np.uint32(1)
            begin = end
        for k in range(4):
            for i in range(BINS):
                bins[i] += tallies[k, i]

    return measure_blocks


def _stamp() -> str:
    """A digest of the code that the driver inlines."""
    sources = (Path(m.__file__ or "").read_bytes() for m in (kernel_lanes, kernel_vector))
    return hashlib.sha256(b"".join(sources)).hexdigest()


measure_blocks = _compiled(_stamp())


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
    parameters, reciprocals = block_parameters(before, after, extremes)
    kept, moved = np.zeros((1, 5, 8)), np.zeros((2, 5, 8))
    kept_n, moved_n = np.zeros((1, 3), np.int64), np.zeros((2, 3), np.int64)
    bins = np.zeros(BINS, np.int64)
    measure_blocks(
        *pair, size, vector_rule(fmt), rule.width, rule.lower, parameters, reciprocals, before.usable,
        bool(before.divide[0]), same, kept, moved, kept_n, moved_n, bins,
    )  # fmt: skip
    sums, counts = kept.sum(axis=2) + moved.sum(axis=2), kept_n + moved_n  # fixed, adaptive
    expected, squares, surviving, dot = (
        sums[:, EXPECTED],
        sums[:, SQUARES],
        sums[:, SURVIVING],
        sums[:, DOT],
    )
    flips, changes, pinned = counts.T
    return Totals(
        np.stack([flips, changes, np.zeros_like(flips)], axis=1)[::-1].copy(),
        np.stack([expected + pinned, expected - squares, surviving, dot], axis=1)[::-1].copy(),
        bins, float(sums[0, DELTA]),
    )  # fmt: skip
