"""A format as the arrays that the compiled kernel reads, all derived from its one description and its rounding rule.

In: a format, and the extremes of blocks. Out: a `Rule`, how codes follow from ratios, and `BlockGrids`, how ratios and
values follow from weights and levels.

>>> blocks = Extremes(np.array([-1], np.float32), np.array([7], np.float32), np.array([False]))
>>> fit_grids(blocks, format_named("int4-g64"), tensor_absmax=7.0, partial=False).scale
array([1.], dtype=float32)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.kernel.slots import BY_COMPARISON, BY_LOOKUP, BY_ROUNDING
from unforgotten.theory.formats.grids import FITS
from unforgotten.theory.formats.names import Format
from unforgotten.theory.formats.reference import ARITHMETICS, Grid, fit_grid
from unforgotten.theory.formats.rounding import ROUNDINGS
from unforgotten.theory.geometry.cells import cells

Array = NDArray[Any]
MOST_COMPARED = 15  # thresholds that are compared one by one
ROOM = 2.0**127
WHOLE = frozenset({"hqq-proximal", "nested-absmax"})
"""Statistics of a mean over the whole tensor, which is therefore read at once and measured by numpy."""
SEARCHED = frozenset({"q3_k", "q4_k", "q5_k", "q6_k"})
"""Statistics that look at every weight of a block again and again, by `super_blocks`."""
EXTREMES = frozenset(FITS) - WHOLE - SEARCHED
"""Statistics that are functions of a block's smallest and largest weight, and of which comes first."""


class Rule(NamedTuple):
    """How a code, its level and its cell follow from a ratio; arrays of the format, the same for every block.

    Attributes:
        kind: way to a code; BY_ROUNDING: the nearest integer, a tie to the even one; BY_COMPARISON: the number of
            thresholds below the ratio; BY_LOOKUP: that number, begun with a table over the leading bits of the ratio.
        zero_first: whether the zero point is added before the code is rounded, see `Format`.
        thresholds: thresholds, float32; the code of a ratio is the number of them that it exceeds; filled with inf.
        table: code of the smallest ratio of each bucket, int32; a bucket holds at most one threshold.
        shift: number of bits of a float32 that do not count in its bucket.
        first: the bucket of `table[0]`.
        levels: level of each code, float32 (K,).
        lower: lower end of each cell, float64 (K,).
        width: width of each cell, float64 (K,), inf in a cell of no width.
        inverse: inverse of each width.
        unit: factor of a value, float32.
    """

    kind: int
    zero_first: bool
    thresholds: Array
    table: Array
    shift: int
    first: int
    levels: Array
    lower: Array
    width: Array
    inverse: Array
    unit: np.float32


class BlockGrids(NamedTuple):
    """The parameters of every block of one piece of a tensor, as the kernel applies them; arrays (n_blocks,).

    A ratio is `(w - low) / factor` where `divide`, else `(w - low) * factor`; 0 where the scale says nothing.
    A value is `(level - value_zero) * scale * unit + value_low`.
    """

    divide: Array
    usable: Array
    factor: Array
    low: Array
    zero: Array
    scale: Array
    value_zero: Array
    value_low: Array


@dataclass(frozen=True)
class Extremes:
    """Of every block the smallest and the largest weight, float32 (n_blocks,), and whether the smallest comes first."""

    low: Array
    high: Array
    low_first: Array


def is_compiled(fmt: Format) -> bool:
    """Return whether the kernel measures the format: its parameters are found block by block."""
    return fmt.statistic not in WHOLE


@lru_cache(maxsize=64)
def rule_of(fmt: Format) -> Rule:
    """Return the rule of a format.

    Raises:
        ValueError: the format rounds around a zero point in a way other than to the nearest even integer.
    """
    cell = cells(fmt)
    width = np.where(cell.width > 0, cell.width, np.inf)
    kind, shift, first = BY_ROUNDING, 0, 0
    thresholds: Array = np.full(MOST_COMPARED, np.inf)
    table: Array = np.zeros(1, np.int32)
    if fmt.rounding != "half-even":
        if fmt.zero in ("whole", "float"):
            raise ValueError(f"rounding must be half-even with a zero point, got {fmt.rounding!r}")
        thresholds = exact_thresholds(fmt)
        if len(thresholds) > MOST_COMPARED:
            kind = BY_LOOKUP
            table, shift, first = lookup_table(thresholds)
            thresholds = np.append(thresholds, np.inf)
        else:
            kind = BY_COMPARISON
            thresholds = np.append(thresholds, np.full(MOST_COMPARED - len(thresholds), np.inf))
    return Rule(
        kind,
        fmt.zero_first,
        np.asarray(thresholds, np.float32),
        np.asarray(table, np.int32),
        shift,
        first,
        np.asarray(fmt.levels, np.float32),
        cell.lower,
        width,
        1 / width,
        np.float32(fmt.unit),
    )


def exact_thresholds(fmt: Format) -> Array:
    """Find for each code k but the last the largest float32 of a code <= k, (K - 1,); -inf if there is none.

    Found by bisection over all float32 in their order, so ties and the roundings of the rule are in it.
    """
    codes: Array = np.arange(len(fmt.levels) - 1)
    top = float_order(np.array([np.finfo(np.float32).max], np.float32))[0]
    low: Array = np.full(len(codes), -top - 1)
    high: Array = np.full(len(codes), top)  # code(low) <= k < code(high + 1)
    while (low < high).any():
        middle = (low + high + 1) >> 1
        below = _code(from_float_order(middle), fmt) <= codes
        low = np.where(below, middle, low)
        high = np.where(below, high, middle - 1)
    return np.where(low < -top, np.float32(-np.inf), from_float_order(np.maximum(low, -top)))


def _code(ratio: Array, fmt: Format) -> Array:
    zero = np.zeros_like(ratio)
    with np.errstate(over="ignore"):
        return ROUNDINGS[fmt.rounding](ratio, zero, fmt)


def float_order(x: Array) -> Array:
    """Map float32 numbers to integers (int64) in their order; 0 for both zeros."""
    bits = x.view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def from_float_order(n: Array) -> Array:
    """Map integers to the float32 numbers at these places in their order: the inverse of `float_order`."""
    bits = np.where(n < 0, 0x80000000 | -n, n).astype(np.uint32)
    return bits.view(np.float32)


def lookup_table(thresholds: Array) -> tuple[Array, int, int]:
    """Return each bucket's code of the smallest ratio, the bits that do not count in a bucket, and the first bucket.

    A bucket is `float_order(ratio) >> shift`; the shift is the largest that leaves one threshold to a bucket, so what
    is left of a search is one comparison.

    Raises:
        ValueError: two thresholds are equal, so that no bucket has one alone.
    """
    order = float_order(np.asarray(thresholds, np.float32))
    for shift in range(30, 0, -1):
        bucket = order >> shift
        if len(np.unique(bucket)) == len(bucket):
            first = int(bucket[0])
            starts = np.arange(first, int(bucket[-1]) + 2) << shift
            return np.searchsorted(order, starts, side="left"), shift, first
    raise ValueError("thresholds must differ to be looked up, got equal ones")


def fit_grids(extremes: Extremes, fmt: Format, *, tensor_absmax: float, partial: bool) -> BlockGrids:
    """Return the parameters that a format chooses for blocks of these extremes, by `theory.formats.grids`.

    A block of its two extremes has the parameters of the whole block, since the statistic sees nothing else.

    Args:
        extremes: extremes of the blocks.
        fmt: a format that the kernel takes.
        tensor_absmax: largest magnitude of the whole tensor, which sets the scale of scales.
        partial: whether the last block is a partial one of a flat tensor, which divides where full ones multiply.

    Raises:
        ValueError: see `fit_grid`.
    """
    low, high = extremes.low, extremes.high
    if fmt.statistic == "signed-absmax":
        low, high = np.where(extremes.low_first, (low, high), (high, low))
    if fmt.tensor_range:
        low, high = (np.append(end, np.float32(tensor_absmax)) for end in (low, high))
    ends = np.stack([low, high]).T  # the long axis is the fast one
    grid = fit_grid(ends, fmt).rows(0, len(extremes.low))
    return _applied(grid, fmt, partial=partial)


def _applied(grid: Grid, fmt: Format, *, partial: bool) -> BlockGrids:
    encoder, count = grid.encoder or grid, len(grid.scale)
    scale, divisor = _column(grid.scale, count), _column(encoder.scale, count)
    if partial:
        scale[-1], divisor[-1] = (max(x[-1], np.float32(fmt.floor)) for x in (scale, divisor))
    with np.errstate(all="ignore"):
        factor, usable = ARITHMETICS[fmt.arithmetic](np.ones(1, np.float32), divisor, fmt)
    divide = np.full(count, fmt.arithmetic == "divide")
    if divide[0]:
        factor = np.where(usable, divisor, np.float32(1))
    else:
        factor = np.where(usable, factor, np.float32(0))
        if partial:
            divide[-1], factor[-1] = True, divisor[-1]
    nothing = np.zeros(count, np.float32)
    return BlockGrids(
        divide,
        usable,
        factor,
        nothing if encoder.low is None else _column(encoder.low, count),
        _column(encoder.zero, count),
        scale,
        _column(grid.zero, count),
        nothing if grid.low is None else _column(grid.low, count),
    )


def _column(values: Array, count: int) -> Array:
    return np.array(np.broadcast_to(values[:, 0], count))


def pinned_weights(extremes: Extremes, fmt: Format) -> tuple[Array, Array]:
    """Return the two weights that set the parameters of each block, wherever they stand in it; nan for none."""
    low, high = extremes.low, extremes.high
    nothing = np.full_like(low, np.nan)
    if fmt.statistic in ("absmax", "signed-absmax"):
        absmax = np.maximum(-low, high)
        return -absmax, absmax
    if fmt.statistic == "range":
        return np.where(low < 0, low, nothing), np.where(high > 0, high, nothing)
    if fmt.statistic in ("min-max", "hqq"):
        return low, high
    return nothing, nothing


def may_overflow(blocks: BlockGrids, fmt: Format) -> bool:
    """Return whether a value may overflow, by a bound on all that is rounded a few times: it has room for that."""
    level = max(abs(fmt.levels[0]), abs(fmt.levels[-1])) + _largest(blocks.value_zero)
    bound = level * max(1.0, fmt.unit) * _largest(blocks.scale) + _largest(blocks.value_low)
    return bound > ROOM


def _largest(x: Array) -> float:
    return float(max(x.max(), -x.min()))


def grids_agree(one: BlockGrids, other: BlockGrids, fmt: Format) -> Array:
    """Flag the blocks whose two grids are equal, bool (n_blocks,)."""
    same = (one.scale == other.scale) & (one.factor == other.factor) & (one.usable == other.usable)
    if fmt.zero == "none":
        return same
    rest = (one.low, other.low), (one.zero, other.zero), (one.value_zero, other.value_zero)
    return np.logical_and.reduce([same, one.value_low == other.value_low, *(a == b for a, b in rest)])
