"""The parameters of the blocks of a tensor, and the rules that choose them, by the name of the statistic.

A rule takes float32 blocks (n_blocks, block) and the format, and returns a `Grid`. A search for better parameters is
one more entry of `FITS`.

Takes blocks of weights, float32 (n_blocks, block), and a format; gives a `Grid`. Which function fits it is the
`statistic` of the format, a key of `FITS`.

>>> from unforgotten.theory.formats.names import format_named
>>> grid = FITS["absmax"](np.array([[3.5, -1, 0, 7]], np.float32), format_named("int4-g64"))
>>> grid.scale.tolist()
[[1.0]]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.formats.description import Format
from unforgotten.theory.formats.dynamic import exact_mean, nested
from unforgotten.theory.formats.hqq import Affine, min_max_affine, proximal_affine
from unforgotten.theory.formats.kquants import KBlocks, q3_k, q4_k, q5_k, q6_k
from unforgotten.theory.formats.scales import SCALE_RULES, replace_empty

Array = NDArray[Any]


@dataclass(frozen=True)
class Grid:
    """The parameters of every block of one tensor, as the format stores them.

    Arrays are float32 (n_blocks, 1), or (n_blocks, block) where parts of a block have parameters of their own.

    Attributes:
        scale: the step, or the absmax where the format stores that.
        zero: the zero point in code units; zeros where the format has none.
        low: number that is subtracted from the weights; None for nothing.
        encoder: the parameters that make the codes, where they are not those that are stored.
    """

    scale: Array
    zero: Array
    low: Array | None = None
    encoder: Grid | None = None

    def rows(self, start: int, stop: int) -> Grid:
        """Return the parameters of blocks start … stop - 1."""
        return Grid(
            self.scale[start:stop],
            self.zero[start:stop],
            None if self.low is None else self.low[start:stop],
            None if self.encoder is None else self.encoder.rows(start, stop),
        )


def absmax(blocks: Array) -> Array:
    """Return the largest magnitude of each block."""
    return np.abs(blocks).max(axis=1, keepdims=True)


def signed_absmax(blocks: Array) -> Array:
    """Return the first entry of each block that has its largest magnitude."""
    first = np.abs(blocks).argmax(axis=1, keepdims=True)
    return np.take_along_axis(blocks, first, axis=1)


def fit_absmax(blocks: Array, fmt: Format) -> Grid:
    """Return the grid whose scale comes from the largest magnitude of each block."""
    return _symmetric(absmax(blocks), fmt)


def fit_signed_absmax(blocks: Array, fmt: Format) -> Grid:
    """Return the grid whose scale, of either sign, comes from the entry of each block with the largest magnitude."""
    return _symmetric(signed_absmax(blocks), fmt)


def fit_nested_absmax(blocks: Array, fmt: Format) -> Grid:
    """Return the grid whose codes are made with the largest magnitudes, and read with what 8 bits leave of those."""
    return nest(fit_absmax(blocks, fmt))


def nest(own: Grid) -> Grid:
    """Return the grid that is read with the absmaxes of `own` in 8 bits, and encodes with `own`."""
    absmax = own.scale[:, 0]
    return Grid(nested(absmax, exact_mean(absmax)).read[:, None], own.zero, encoder=own)


def _symmetric(statistic: Array, fmt: Format) -> Grid:
    if fmt.arithmetic == "multiply":
        return Grid(statistic, np.zeros_like(statistic))
    scale = SCALE_RULES[fmt.scale_rule](statistic, fmt)
    return stored(Grid(scale, np.zeros_like(scale)), fmt)


def fit_range(blocks: Array, fmt: Format) -> Grid:
    """Return the grid of a scale and a whole zero point from the range of each block, widened to contain 0."""
    low = np.minimum(blocks.min(axis=1, keepdims=True), np.float32(0))
    high = np.maximum(blocks.max(axis=1, keepdims=True), np.float32(0))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        scale = (high - low) / np.float32(fmt.divisor)
        if fmt.least_scale:
            scale = np.maximum(scale, np.float32(fmt.least_scale))
        zero = _whole_zero(-low / scale, fmt)
    return Grid(replace_empty(scale, fmt), zero)


def _whole_zero(distance: Array, fmt: Format) -> Array:
    """Return the code of 0 that lies `distance` >= 0 steps above the lowest level; nan where the scale says nothing."""
    lowest, top = np.float32(fmt.levels[0]), np.float32(fmt.levels[-1])
    if fmt.zero_first:
        return np.rint(np.minimum(lowest + np.nan_to_num(distance, nan=0.0, posinf=np.inf), top))
    whole = np.nan_to_num(np.rint(distance), nan=0.0, posinf=0.0)
    return np.minimum(lowest + whole, top)  # a subnormal scale is rounded too far down


def fit_min_max(blocks: Array, fmt: Format) -> Grid:
    """Return the grid of a scale from max - min of each block, and the min that is subtracted."""
    low = blocks.min(axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        scale = (blocks.max(axis=1, keepdims=True) - low) / np.float32(fmt.divisor)
    return stored(Grid(scale, np.zeros_like(scale), low), fmt)


def fit_hqq(blocks: Array, fmt: Format) -> Grid:
    """Return the grid of HQQ from the min and max of each block, without its solver."""
    return _inverse(min_max_affine(blocks, fmt))


def fit_hqq_proximal(blocks: Array, fmt: Format) -> Grid:
    """Return the grid of HQQ with the zero points of its half-quadratic solver."""
    return _inverse(proximal_affine(blocks, fmt))


def _inverse(affine: Affine) -> Grid:
    scale = np.float32(1) / affine.inverse
    return Grid(scale, affine.zero, encoder=Grid(affine.inverse, affine.zero))


def fit_q3_k(blocks: Array, fmt: Format) -> Grid:
    """Return the grid of scales, of either sign, that Q3_K's search finds for sub-blocks of 16."""
    return _of_sub_blocks(q3_k(blocks), blocks.shape[1])


def fit_q4_k(blocks: Array, fmt: Format) -> Grid:
    """Return the grid of scales and minima that Q4_K's search finds for sub-blocks of 32."""
    return _of_sub_blocks(q4_k(blocks), blocks.shape[1])


def fit_q5_k(blocks: Array, fmt: Format) -> Grid:
    """Return the grid of scales and minima that Q5_K's search finds for sub-blocks of 32."""
    return _of_sub_blocks(q5_k(blocks), blocks.shape[1])


def fit_q6_k(blocks: Array, fmt: Format) -> Grid:
    """Return the grid of scales, of either sign, that Q6_K's search finds for sub-blocks of 16."""
    return _of_sub_blocks(q6_k(blocks), blocks.shape[1])


def _of_sub_blocks(found: KBlocks, block: int) -> Grid:
    """Return a scale and a minimum for each weight. Where a scale is 0 any code has the same value."""
    step, low = (np.repeat(x, block // x.shape[1], axis=1) for x in (found.step, -found.low))
    return Grid(step, np.zeros_like(step), low)


def fit_nothing(blocks: Array, fmt: Format) -> Grid:
    """Return the grid of scale 1: the weights are their own code units."""
    scale = np.ones((len(blocks), 1), np.float32)
    return Grid(scale, np.zeros_like(scale))


def stored(grid: Grid, fmt: Format) -> Grid:
    """Return the grid whose parameters are rounded to the dtype of storage, with the unrounded one as its encoder."""
    if fmt.storage == "float32":
        return grid
    with np.errstate(over="ignore", under="ignore"):  # what overflows is refused by `fit_grid`
        scale = grid.scale.astype(np.float16).astype(np.float32)
        low = None if grid.low is None else grid.low.astype(np.float16).astype(np.float32)
    return Grid(scale, grid.zero, low, encoder=grid)


FITS: Mapping[str, Callable[[Array, Format], Grid]] = {
    "absmax": fit_absmax,
    "nested-absmax": fit_nested_absmax,
    "signed-absmax": fit_signed_absmax,
    "range": fit_range,
    "min-max": fit_min_max,
    "hqq": fit_hqq,
    "hqq-proximal": fit_hqq_proximal,
    "q3_k": fit_q3_k,
    "q4_k": fit_q4_k,
    "q5_k": fit_q5_k,
    "q6_k": fit_q6_k,
    "none": fit_nothing,
}


def _sets_absmax(blocks: Array) -> Array:
    magnitude = np.abs(blocks)
    return magnitude == magnitude.max(axis=1, keepdims=True)


def _sets_min_max(blocks: Array) -> Array:
    low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
    return (blocks == low) | (blocks == high)


def _sets_range(blocks: Array) -> Array:
    low = np.minimum(blocks.min(axis=1, keepdims=True), 0)
    high = np.maximum(blocks.max(axis=1, keepdims=True), 0)
    return (blocks != 0) & ((blocks == low) | (blocks == high))


def _sets_nothing(blocks: Array) -> Array:
    return np.zeros(blocks.shape, bool)


# Which entries set the parameters, by statistic: their place in the cell is known. A search looks at all of them.
SETTERS: Mapping[str, Callable[[Array], Array]] = {
    "absmax": _sets_absmax,
    "nested-absmax": _sets_absmax,
    "signed-absmax": _sets_absmax,
    "range": _sets_range,
    "min-max": _sets_min_max,
    "hqq": _sets_min_max,
    "hqq-proximal": _sets_nothing,
    "q3_k": _sets_nothing,
    "q4_k": _sets_nothing,
    "q5_k": _sets_nothing,
    "q6_k": _sets_nothing,
    "none": _sets_nothing,
}
