"""Formats of at most sixteen levels as tables that fit the registers of `kernel_vector`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.kernel_lanes import LANES, available
from unforgotten.audit.kernel_plan import Rule, exact_thresholds, rule_of
from unforgotten.audit.kernel_vector import (
    BELOW,
    BY_BUCKET,
    BY_HALVING,
    BY_ROUNDING,
    CODES,
    END_PLACE,
    FRACTION,
    INVERSE,
    LEVELS,
    LIMITS,
    LOWER64,
    ORIGIN,
    ROWS,
    THRESHOLDS,
    WIDTH64,
)  # fmt: skip
from unforgotten.theory.formats import Format

Array = NDArray[Any]
BINS = 256


class VectorRule(NamedTuple):
    """A format in registers.

    Attributes:
        narrow: float32 (9, 16): thresholds filled with inf, levels, the place of a ratio of 0 in fine bins, fine bins a code unit; and
            of 32 buckets the code of the smallest ratio, as bits, and the one threshold, inf for none; and the threshold below each code.
        wide: float64 (4, 16): flips a code unit upward, and downward, negative, 0 outward from an end cell; lower ends and
            widths of the cells.
        constants: float32 (7,), see `kernel_vector`.
        way: to a code: BY_BUCKET where every bucket has at most one threshold, else BY_HALVING; of integers BY_ROUNDING.
    """

    narrow: Array
    wide: Array
    constants: Array
    way: int


def fits_registers(fmt: Format) -> bool:
    """Whether this machine measures the format sixteen weights at a time, in blocks of whole groups."""
    simple = fmt.zero == "none" and fmt.statistic in ("absmax", "signed-absmax")
    return simple and (len(fmt.levels) <= LANES or _by_rounding(fmt)) and available()


def _by_rounding(fmt: Format) -> bool:
    """Whether codes are integers that are rounded to, in more levels than a register has lanes."""
    return len(fmt.levels) > LANES and fmt.rounding == "half-even"


@lru_cache(maxsize=64)
def vector_rule(fmt: Format) -> VectorRule:
    """The tables of a format that `fits_registers`.

    A bucket is `rint(steps ratio)` of a ratio cut to ± reach, a function that never falls: so the thresholds of lower
    buckets are below the ratio, those of higher ones above, and where no bucket has two, one comparison is left.
    """
    rule, count = rule_of(fmt), len(fmt.levels)
    if _by_rounding(fmt):
        return _integer_rule(fmt, rule)
    narrow, wide = np.zeros((ROWS, LANES), np.float32), np.zeros((4, LANES))
    thresholds = exact_thresholds(fmt)
    narrow[THRESHOLDS] = np.inf
    narrow[THRESHOLDS, : count - 1] = thresholds
    narrow[BELOW, 0], narrow[BELOW, 1:] = -np.inf, narrow[THRESHOLDS, :-1]
    narrow[LEVELS, :count] = rule.levels
    slope = BINS * 2.0**FRACTION * rule.inverse
    narrow[INVERSE, :count], narrow[ORIGIN, :count] = slope, -slope * rule.lower
    narrow[INVERSE, [0, count - 1]], narrow[ORIGIN, [0, count - 1]] = 0, END_PLACE
    wide[0, :count], wide[1, :count] = rule.inverse, -rule.inverse
    wide[0, count - 1] = wide[1, 0] = 0
    wide[LOWER64, :count], wide[WIDTH64, :count] = rule.lower, rule.width
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
    constants = np.array([rule.unit, edge, around, reach, steps, 0, 0], np.float32)
    return VectorRule(narrow, wide, constants, BY_BUCKET if bucketed else BY_HALVING)


def _integer_rule(fmt: Format, rule: Rule) -> VectorRule:
    """No tables: levels are integers, and all cells but the two at the ends are one wide."""
    assert (rule.width[1:-1] == 1).all(), "integers are one apart"
    wide = np.zeros((4, LANES))
    wide[0, 0], wide[0, 1] = rule.inverse[0], rule.inverse[-1]
    edge = _edge(rule)
    around = (1 << FRACTION) - 2 * edge
    ends = fmt.levels[0], fmt.levels[-1]
    constants = np.array([rule.unit, edge, around, 0, 0, *ends], np.float32)
    return VectorRule(np.zeros((ROWS, LANES), np.float32), wide, constants, BY_ROUNDING)


def _edge(rule: Rule) -> int:
    """Fine bins, a power of two, within which float32 may mistake the side of a bin's end.

    In an interior cell of ends up to v the ratio, the inverse width and the place of a ratio of 0 are rounded once each,
    to 2^-24 of themselves, which is 2^-24 v / width of a cell each; their fused sum to 2^-24 of a cell. Integers round
    the ratio, its distance from the lower end and the product, to less than that.
    """
    inner = slice(1, len(rule.levels) - 1)
    upper = rule.lower[inner] + rule.width[inner]
    v = np.maximum(np.abs(rule.lower[inner]), np.abs(upper))
    cells_off = 2.0**-24 * (3 * (v * rule.inverse[inner]).max() + 3)
    off = cells_off * BINS * 2.0**FRACTION + 1  # one for the fraction that is dropped
    return int(2 ** np.ceil(np.log2(off)))
