"""T1 in the arithmetic of the kernel: which float32 weights have a code, exactly, and which keep a whole block.

Takes codes and a grid, or the blocks of a tensor; gives `Interval`s of float32 weights, (n_blocks, m).

>>> from unforgotten.theory.formats.names import format_named
>>> box = block_box(np.array([[7, 1]], np.float32), format_named("int4-row"))
>>> box.lower.tolist(), box.upper.tolist()
([[7.0, 0.5000000596046448]], [[7.0, 1.4999998807907104]])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.claims import claim
from unforgotten.theory.formats.grids import FITS, Grid
from unforgotten.theory.formats.names import Format
from unforgotten.theory.formats.reference import encode, fit_grid

Array = NDArray[Any]
LARGEST = np.float32(np.finfo(np.float32).max)
SEARCH_STEPS = 33  # there are fewer than 2^33 float32 numbers


class Interval(NamedTuple):
    """Closed intervals of float32 numbers; empty where `lower > upper`.

    The set of reals that round into one of them contains [lower, upper] (inner) and lies in the open interval between
    the float32 numbers next to it (`outer`).
    """

    lower: Array
    upper: Array

    @property
    def outer(self) -> Interval:
        """The float32 numbers just outside."""
        inf = np.float32(np.inf)
        with np.errstate(over="ignore"):
            return Interval(np.nextafter(self.lower, -inf), np.nextafter(self.upper, inf))


@claim("T1", kind="exact", source="the monotone kernels of `reference.encode`, searched to the last bit")
def weight_cells(codes: Array, grid: Grid, fmt: Format, *, partial: bool = False) -> Interval:
    """{w float32 : encode(w) = k} = [lower_k, upper_k], for every code and scale, with no margin.

    A code is a monotone function of the weight on a fixed grid: rounded quotients, products and sums are monotone. So a
    bisection of the float32 numbers finds the first one of each code. End cells reach to the largest float32, because
    what exceeds the grid is clipped.

    Args:
        codes: integers 0 … K - 1, (n_blocks, m), m > 1 if `partial`.
        grid: parameters of the blocks, (n_blocks, 1) or (n_blocks, m).
        fmt: the format.
        partial: whether the last block is the partial one of a flat tensor, which divides.

    Returns:
        Intervals, float32 (n_blocks, m); empty for a code that no weight has on this grid.

    Raises:
        ValueError: the format is dithered.
    """
    if fmt.dithered:
        raise ValueError(f"format must round to nearest here, got the dithered format={fmt.name!r}")
    encoder = grid.encoder or grid
    falling = encoder.scale < 0  # a negative scale turns the order of the codes around
    sign = np.where(falling, np.float32(-1), np.float32(1))

    def first_at_least(target: Array) -> Array:
        def reached(key: Array) -> Array:
            w = sign * _from_key(key)
            return encode(w, grid, fmt, count=1 if partial else None) >= target

        return _first(reached, -_key(LARGEST), np.broadcast_to(_key(LARGEST) + 1, target.shape))

    low, high = first_at_least(codes), first_at_least(codes + 1) - 1
    low, high = np.where(falling, -high, low), np.where(falling, -low, high)
    return _interval(low, high)


@claim("T1", kind="exact", source="as `weight_cells`; scale rules are monotone in their statistic")
def block_box(blocks: Array, fmt: Format, *, count: int | None = None) -> Interval:
    """{w' : lower <= w' <= upper} has the parameters and the codes of w, entry by entry and block by block.

    The parameters are those that make the codes, so a GGUF block also keeps the float32 scale that is not stored.
    The entry that sets a scale keeps its sign and may move as far as the rounded scale does not notice: not at all
    where the scale is the absmax itself, over a binade in MXFP4. The others keep their code and stay below it. (Where
    another's cell alone keeps that scale, the entry that sets it is as free as the others.) The box
    is maximal then, as no end can move by an ulp on its own; another entry could set the scale in another box.
    Sound but not maximal: the entries that set a range, or the scale of a whole tensor beside that of its blocks, keep
    their value, and the others stay between them, though a range that grows by an ulp may round to the same scale.

    Args:
        blocks: weights by block, float32 (n_blocks, block), the whole tensor.
        fmt: the format; its parameters must not come from a search.
        count: weights of a flat tensor, as in `fit_grid`.

    Raises:
        ValueError: the parameters of the format come from a search, or a weight is not finite.
    """
    if fmt.statistic not in LIMITS:
        known = ", ".join(LIMITS)
        raise ValueError(f"statistic must be one of {known}, got statistic={fmt.statistic!r}")
    partial = count is not None and count % blocks.shape[1] != 0
    grid = fit_grid(blocks, fmt, count=count)
    codes = encode(blocks, grid, fmt, count=count).astype(np.int64)
    cell = weight_cells(codes, grid, fmt, partial=partial)
    limit = LIMITS[fmt.statistic](blocks, fmt, partial)
    box = Interval(np.maximum(cell.lower, limit.lower), np.minimum(cell.upper, limit.upper))
    if fmt.statistic == "absmax" and not fmt.tensor_range:
        return _released(box, cell, blocks, fmt, partial)
    return box


def _released(box: Interval, cell: Interval, blocks: Array, fmt: Format, partial: bool) -> Interval:
    """Return the box, wider at the entry that sets a scale where another's own cell holds that scale.

    So it is in torchao's int4 with absmax at both ends: 7.5 steps are clipped to 7, and -7.5 are a tie that -8 ends at.
    """
    setter = np.abs(blocks).argmax(axis=1)[:, None]
    low, high = same_scale(np.take_along_axis(blocks, setter, axis=1), fmt, partial=partial)
    at = np.arange(blocks.shape[1]) == setter
    nearest = np.maximum(box.lower, -box.upper)
    free = at & (np.where(at, -LARGEST, nearest).max(axis=1, keepdims=True) >= low)
    lower = np.where(free, np.maximum(cell.lower, -high), box.lower)
    return Interval(lower, np.where(free, np.minimum(cell.upper, high), box.upper))


def _limit_nothing(blocks: Array, fmt: Format, partial: bool) -> Interval:
    wide = np.full(blocks.shape, LARGEST)
    return Interval(-wide, wide)


def _limit_range(blocks: Array, fmt: Format, partial: bool) -> Interval:
    """Keep weights between min and max, widened to contain 0 where the statistic is; the first of each stays."""
    low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
    lowest, highest = low, high
    if fmt.statistic == "range":
        lowest, highest = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    lower, upper = (np.broadcast_to(x, blocks.shape).copy() for x in (lowest, highest))
    for end, index in ((lowest, blocks.argmin(axis=1)), (highest, blocks.argmax(axis=1))):
        at = (np.arange(len(blocks)), index)
        stays = blocks[at] == end[:, 0]
        if fmt.statistic == "range":
            stays &= end[:, 0] != 0  # 0 belongs to every range, whoever has it
        lower[at] = np.where(stays, end[:, 0], lower[at])
        upper[at] = np.where(stays, end[:, 0], upper[at])
    return Interval(lower, upper)


def _limit_absmax(blocks: Array, fmt: Format, partial: bool) -> Interval:
    """Bound magnitudes by the largest that gives the scale of the block, one of them from below by the smallest."""
    size = np.abs(blocks)
    setter = size.argmax(axis=1)[:, None]
    statistic = np.take_along_axis(blocks, setter, axis=1)
    low, high = same_scale(statistic, fmt, partial=partial)
    signed = fmt.statistic == "signed-absmax"
    opposite = blocks * np.sign(statistic) < 0
    before = np.arange(blocks.shape[1]) < setter
    if signed:  # a weight of the other sign must stay smaller, or not larger where it comes later
        other = np.where(before, np.nextafter(size, LARGEST), size)
        low = np.maximum(low, np.where(opposite, other, np.float32(0)).max(axis=1, keepdims=True))
    far = np.where(before, np.nextafter(low, np.float32(-1)), low) if signed else high
    free = low == 0
    near = np.where(free, high, far)
    up = statistic >= 0
    lower, upper = np.where(up, -near, -high), np.where(up, high, near)
    at = np.arange(blocks.shape[1]) == setter
    lower = np.where(at & up & ~free, low, lower)
    upper = np.where(at & ~up & ~free, -low, upper)
    return Interval(*(np.broadcast_to(x, blocks.shape).astype(np.float32) for x in (lower, upper)))


def same_scale(statistic: Array, fmt: Format, *, partial: bool = False) -> Interval:
    """Return the magnitudes around |statistic| that give its scale, float32 (n_blocks, 1).

    Args:
        statistic: the entry that sets the scale of each block, (n_blocks, 1).
        fmt: the format.
        partial: whether the last block is the partial one of a flat tensor, whose statistic has a floor.
    """
    sign = np.where(statistic < 0, np.float32(-1), np.float32(1))
    size, tensor_absmax = np.abs(statistic), np.abs(statistic).max()
    bare = replace(fmt, empty_scale=0.0, storage="float32")

    def scale(magnitude: Array) -> Array:
        """Return the scales of blocks of one weight, beside one that holds the tensor's largest magnitude."""
        blocks = np.concatenate([sign * magnitude, [[tensor_absmax]]]).astype(np.float32)
        with np.errstate(over="ignore"):
            found = FITS[fmt.statistic](blocks, bare).scale[:-1]
        if partial:
            found[-1] = np.maximum(found[-1], np.float32(fmt.floor))
        return found

    wanted, top = scale(size), np.full_like(size, LARGEST)
    if fmt.tensor_range:
        top = np.full_like(size, tensor_absmax)
    low = _first(lambda k: np.abs(scale(_from_key(k))) >= np.abs(wanted), 0, _key(size))
    high = _first(lambda k: np.abs(scale(_from_key(k))) > np.abs(wanted), _key(size), _key(top) + 1)
    found = _interval(low, high - 1)
    sets_tensor = (size == tensor_absmax) & bool(fmt.tensor_range)
    return Interval(np.where(sets_tensor, size, found.lower), np.where(sets_tensor, size, found.upper))


LIMITS: Mapping[str, Callable[[Array, Format, bool], Interval]] = {
    "absmax": _limit_absmax,
    "signed-absmax": _limit_absmax,
    "range": _limit_range,
    "min-max": _limit_range,
    "hqq": _limit_range,
    "none": _limit_nothing,
}


def _key(x: Array | np.float32) -> Array:
    """Return the place of a float32 among all of them: 0 for both zeros, and one more for each next number."""
    bits = np.asarray(x, np.float32).view(np.int32).astype(np.int64)
    return np.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))


def _from_key(key: Array) -> Array:
    size = np.abs(key).astype(np.int32).view(np.float32)
    return np.where(key < 0, -size, size)


def _interval(low: Array, high: Array) -> Interval:
    """Turn keys into an interval of float32; one key beyond the largest float32 stands for inf."""
    return Interval(_from_key(low), _from_key(high))


def _first(reached: Callable[[Array], Array], low: Array | int, end: Array) -> Array:
    """Return the smallest key in [low, end) from which on `reached` holds, or `end`; it is monotone."""
    low, end = np.broadcast_arrays(np.asarray(low, np.int64), end)
    for _ in range(SEARCH_STEPS):
        middle = np.minimum((low + end) // 2, end - 1)
        yes = reached(middle) & (low < end)
        low, end = np.where(yes | (low >= end), low, middle + 1), np.where(yes, middle, end)
    return end
