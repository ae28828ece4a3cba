"""Formats of at most sixteen levels, or of integer ones, as the tables and numbers that `passes` holds in registers.

In: a format that `is_in_registers`. Out: its `VectorRule`: of any weights, and of bfloat16 weights whose scales are
powers of two.

>>> vector_rule(format_named("nf4-b64")).tables[LEVELS, :2]
array([-1.       , -0.6961928], dtype=float32)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.kernel.entries import FINITE
from unforgotten.audit.kernel.lanes import LANES
from unforgotten.audit.kernel.rules import Rule, exact_thresholds, rule_of
from unforgotten.audit.kernel.slots import (
    AROUND,
    BINS,
    CELL_ROWS,
    CODES,
    EDGE,
    END_PLACE,
    FIRST_BIN,
    FRACTION,
    INVERSE,
    LEVELS,
    LIMITS,
    ORIGIN,
    STAYED,
    SURELY_FROM,
    SURELY_TO,
    TABLE_ROWS,
    THRESHOLDS,
)
from unforgotten.theory.formats.names import Format

Array = NDArray[Any]
SMALLEST = 2.0**-20
MOST_CROWDED = 2.0**-10
OFF = 2.0**-21  # more than twice what the float32 product by a reciprocal may be off


class VectorRule(NamedTuple):
    """A format in registers. A code is found by comparing with the one threshold of the ratio's bucket.

    Attributes:
        tables: lookups by code, float32 (10, 16), see `slots`; None for integers, whose codes are rounded to: the least
            and the largest ratio that a code has for sure; levels; the place of a ratio of 0 in fine bins, and fine bins
            a code unit; of 32 buckets the code of the smallest ratio, as bits, and the one threshold, inf for none; all
            thresholds, filled with inf.
        cells: lookups by code, float64 (3, 16): inverse widths of the cells, that is flips a code unit; their lower ends,
            and widths. Of integers the inverse widths of the first cell and the last.
        extra_thresholds: thresholds that are compared with beside, float32 (2,), inf for none; None if there is none.
        crowded_below: magnitude, float32 (1,), below which ratios lie so close that the ends of bins are left to float64,
            see `lattice_rule`; None where those are left to float64 for all ratios.
        constants: numbers of the format, float32 (8,), see `slots`.
    """

    tables: Array | None
    cells: Array
    extra_thresholds: Array | None
    crowded_below: Array | None
    constants: Array


def is_in_registers(fmt: Format) -> bool:
    """Return whether the vector paths measure the format sixteen weights at a time, in blocks of whole groups."""
    simple = fmt.zero == "none" and fmt.statistic in ("absmax", "signed-absmax")
    return simple and (_by_rounding(fmt) or _by_bucket(fmt))


@lru_cache(maxsize=64)
def _by_bucket(fmt: Format) -> bool:
    """Return whether sixteen levels suffice, and `vector_rule` leaves at most two thresholds outside its buckets."""
    thresholds = exact_thresholds(fmt)
    # near 0 quotients are not what their products say
    clear = fmt.arithmetic != "divide" or (np.abs(thresholds).min() > SMALLEST and _are_inside(_buckets(thresholds)))
    return len(fmt.levels) <= LANES and len(_buckets(thresholds).rest) <= 2 and bool(clear)


def _by_rounding(fmt: Format) -> bool:
    """Return whether codes are integers that are rounded to, in more levels than a register has lanes."""
    return len(fmt.levels) > LANES and fmt.rounding == "half-even"


@lru_cache(maxsize=64)
def vector_rule(fmt: Format) -> VectorRule:
    """Return the tables of a format that `is_in_registers`.

    A bucket is `rint(steps ratio)` of a ratio cut to ± reach, a function that never falls: so the thresholds of lower
    buckets are below the ratio, those of higher ones above, and where no bucket has two, one comparison is left.
    """
    rule, count = rule_of(fmt), len(fmt.levels)
    if _by_rounding(fmt):
        return _integer_rule(fmt, rule)
    tables, cells = np.zeros((TABLE_ROWS, LANES), np.float32), np.zeros((CELL_ROWS, LANES))
    thresholds = exact_thresholds(fmt)
    tables[[SURELY_FROM, SURELY_TO]] = _sure_ranges(thresholds, OFF if fmt.arithmetic == "divide" else 0)
    tables[LEVELS, :count] = rule.levels
    slope = BINS * 2.0**FRACTION * rule.inverse
    tables[INVERSE, :count] = slope
    tables[ORIGIN, :count] = (FIRST_BIN << FRACTION) - slope * rule.lower
    tables[INVERSE, [0, count - 1]], tables[ORIGIN, [0, count - 1]] = 0, END_PLACE
    cells[:, :count] = rule.inverse, rule.lower, rule.width
    found = _buckets(thresholds)
    every = (np.arange(32) + 16) % 32 - 16  # by the last five bits of the number of the bucket
    codes = np.searchsorted(found.bucket, every, side="left").astype(np.int32)
    limits = np.append(found.own, np.float32(np.inf))[codes]
    limits = np.where(np.isin(every, found.bucket), limits, np.float32(np.inf)).astype(np.float32)
    tables[CODES : CODES + 2] = codes.view(np.float32).reshape(2, LANES)
    tables[LIMITS : LIMITS + 2] = limits.reshape(2, LANES)
    tables[THRESHOLDS] = np.append(thresholds, np.full(LANES, np.inf))[:LANES]
    extra = np.append(found.rest, np.full(2, np.inf))[:2].astype(np.float32)
    edge = _edge(fmt, rule)
    around = (1 << FRACTION) - 2 * edge
    sure = OFF * np.abs(thresholds).max()
    constants = np.array([rule.unit, edge, around, found.reach, found.steps, 0, count - 1, sure], np.float32)
    return VectorRule(tables, cells, extra if len(found.rest) else None, None, constants)


class _Buckets(NamedTuple):
    """Thresholds with a bucket of their own, their buckets, and the thresholds that are left over."""

    reach: np.float32
    steps: np.float32
    own: Array
    bucket: Array
    rest: Array


def _buckets(thresholds: Array) -> _Buckets:
    """Sort thresholds into buckets: of several in a bucket the last one keeps it."""
    reach = np.float32(1.02 * np.abs(thresholds[np.isfinite(thresholds)]).max())
    steps = np.float32(15 / reach)
    bucket = np.rint(np.clip(thresholds, -reach, reach).astype(np.float64) * np.float64(steps))
    own = np.append(bucket[1:] != bucket[:-1], True)
    return _Buckets(reach, steps, thresholds[own], bucket[own], thresholds[~own])


def _are_inside(found: _Buckets) -> bool:
    """Return whether each threshold is alone in its bucket, and ratios that may be on either side are inside it."""
    place = found.own.astype(np.float64) * np.float64(found.steps)
    margin = 4 * OFF * np.float64(found.steps) * np.abs(found.own).max()
    return not len(found.rest) and bool((np.abs(place - np.rint(place)) < 0.5 - margin).all())


@lru_cache(maxsize=64)
def lattice_rule(fmt: Format) -> VectorRule | None:
    """Return the tables for ratios of bfloat16 by powers of two: few numbers, many of them on the ends of bins.

    Every place is moved up by `edge`, so that what is on the end of a bin stays in it. Whether all others do too is
    asked of every ratio; those nearer to 0 than `crowded_below`, where they lie close, are left to float64.

    Returns:
        None where a ratio that is not small is off.
    """
    plain, rule = vector_rule(fmt), rule_of(fmt)
    if plain.tables is None:
        return None
    edge = _edge(fmt, rule)
    inner = slice(1, len(rule.levels) - 1)
    tables, constants = plain.tables.copy(), plain.constants.copy()
    tables[[SURELY_FROM, SURELY_TO]] = _sure_ranges(exact_thresholds(fmt), 0)  # they are products
    tables[ORIGIN, inner] += np.float32(edge)
    size = np.arange(FINITE, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float64)
    ratio = np.append(size, -size)
    code = np.searchsorted(exact_thresholds(fmt), ratio, side="left")
    ratio, code = (x[(code > 0) & (code < len(rule.levels) - 1)] for x in (ratio, code))
    fused = np.longdouble(ratio) * tables[INVERSE, code] + tables[ORIGIN, code]  # as fused: rounded once
    found = np.minimum(fused.astype(np.float32).astype(np.int64) >> FRACTION, STAYED - 1)
    exact = FIRST_BIN + np.clip((ratio - rule.lower[code]) / rule.width[code] * BINS, 0, BINS - 1)
    off = np.abs(ratio[found != np.trunc(exact)])
    crowded = np.float32(2 * off.max()) if len(off) else np.float32(0)
    if crowded > MOST_CROWDED:
        return None
    constants[[EDGE, AROUND]] = 0, (1 << FRACTION) - 2 * edge
    return plain._replace(tables=tables, crowded_below=np.array([crowded]), constants=constants)


def _sure_ranges(thresholds: Array, off: float) -> Array:
    """Return what ratios must be above and at most for each code, so that all within `off` of them have it, (2, 16)."""
    found = np.full((2, LANES), np.inf)
    margin = off * np.abs(np.where(np.isfinite(thresholds), thresholds, 0))
    found[0, 0], found[0, 1 : 1 + len(thresholds)] = -np.inf, thresholds + margin
    found[1, : len(thresholds)] = thresholds - margin
    return found.astype(np.float32)


def _integer_rule(fmt: Format, rule: Rule) -> VectorRule:
    """Return the rule of integer levels, without tables: all cells but the two at the ends are one wide."""
    assert (rule.width[1:-1] == 1).all(), "integers are one apart"
    cells = np.array([[rule.inverse[0], rule.inverse[-1]]])
    edge = _edge(fmt, rule)
    around = (1 << FRACTION) - 2 * edge
    ends = fmt.levels[0], fmt.levels[-1]
    # a product has its code even if it is a tie
    sure = 0.5 - OFF * max(np.abs(ends)) if fmt.arithmetic == "divide" else np.inf
    constants = np.array([rule.unit, edge, around, 0, 0, *ends, sure], np.float32)
    return VectorRule(None, cells, None, None, constants)


def _edge(fmt: Format, rule: Rule) -> int:
    """Return how many fine bins, a power of two, lie around a bin's end where float32 may mistake the side.

    A ratio that is a product is within 2^-24 of itself, a quotient within 2^-23; in an interior cell of ends up to v that
    is v / width times as much of a cell. The inverse width and the place of a ratio of 0 are rounded to 2^-24 of
    themselves, their fused sum to 2^-23 of a cell. With integers the distance from the lower end is exact, or below one.
    """
    inner = slice(1, len(rule.levels) - 1)
    upper = rule.lower[inner] + rule.width[inner]
    v = np.maximum(np.abs(rule.lower[inner]), np.abs(upper))
    roundings = (2 if fmt.arithmetic == "divide" else 1) + (0 if _by_rounding(fmt) else 2)
    cells_off = 2.0**-24 * (roundings * (v * rule.inverse[inner]).max() + 3)
    off = cells_off * BINS * 2.0**FRACTION + 1  # one for the fraction that is dropped
    return int(2 ** np.ceil(np.log2(off)))
