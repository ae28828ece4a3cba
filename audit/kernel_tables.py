"""Formats of at most sixteen levels as tables that fit the registers of `kernel_vector`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.kernel_lanes import LANES, available
from unforgotten.audit.kernel_plan import Rule, exact_thresholds, rule_of
from unforgotten.audit.kernel_vector import (
    CODES, FRACTION, INVERSE, LEVELS, LIMITS, LOWER, THRESHOLDS,
)  # fmt: skip
from unforgotten.theory.formats import Format

Array = NDArray[Any]
BINS = 256


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

    In an interior cell of ends up to v the ratio, the lower end and their difference are rounded once each, to 2^-24
    of at most v; the inverse, the product and the end of the bin to 2^-24 of at most one cell.
    """
    inner = slice(1, len(rule.levels) - 1)
    upper = rule.lower[inner] + rule.width[inner]
    v = np.maximum(np.abs(rule.lower[inner]), np.abs(upper))
    cells_off = 2.0**-24 * (3 * (v * rule.inverse[inner]).max() + 3)
    off = cells_off * BINS * 2.0**FRACTION + 1  # one for the fraction that is dropped
    return int(2 ** np.ceil(np.log2(off)))
