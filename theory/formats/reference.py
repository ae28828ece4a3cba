"""The numpy reference: codes and values of a tensor in any format, bit for bit as the kernels compute them.

Everything is float32, in the order of operations of the library that the format names. Slow and plain on
purpose: faster paths are tested against this one.

Takes a tensor and a `Format`; gives its codes and its `Grid`, or the values that the deployed model computes with.

>>> from unforgotten.theory.formats.names import format_named
>>> w = np.array([[7, -2, 0.4, 0]], np.float32)
>>> codes, grid = quantize(w, format_named("int4-row"))
>>> codes.tolist()
[[14, 5, 7, 7]]
>>> round_trip(w, format_named("int4-row")).tolist()
[[7.0, -2.0, 0.0, 0.0]]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.formats.grids import FITS, Grid, nest
from unforgotten.theory.formats.names import Format
from unforgotten.theory.formats.rounding import ROUNDINGS
from unforgotten.theory.formats.tiles import from_tiles, to_tiles

__all__ = [
    "ARITHMETICS",
    "Grid",
    "code_units",
    "decode",
    "encode",
    "fit_grid",
    "from_blocks",
    "quantize",
    "round_trip",
    "to_blocks",
]


def to_blocks(w: NDArray[Any], fmt: Format) -> NDArray[Any]:
    """Return the tensor as (n_blocks, block) float32, the last block of a row or flat tensor, or a cut tile, filled with zeros.

    Zeros change no scale: absmax ignores them, and a range always contains 0. Other formats take whole blocks only.

    Raises:
        ValueError: the tensor is empty or has no rows, or the format takes whole blocks only and a row has others.
    """
    if w.ndim < 1 or w.size == 0:
        raise ValueError(f"a tensor to quantize must not be empty, got shape={w.shape}")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, which fit_grid refuses
        w = np.asarray(w, np.float32)
    if fmt.tile is not None:
        return to_tiles(w, fmt.tile)
    rows = {"tensor": (1, w.size), "flat": (1, w.size)}.get(fmt.block, (-1, w.shape[-1]))
    w = w.reshape(rows)
    if fmt.block_size is None:
        return w
    return np.pad(w, ((0, 0), (0, padding(w.shape[1], fmt)))).reshape(-1, fmt.block_size)


def padding(columns: int, fmt: Format) -> int:
    """Return how many zeros fill the last block of a row (or of a flat tensor).

    Raises:
        ValueError: the format takes whole blocks only, and the row has others.
    """
    zeros = -columns % (fmt.block_size or 1)
    if zeros and fmt.whole_blocks:
        raise ValueError(f"rows must be whole blocks of {fmt.block_size} in {fmt.name}, got columns={columns}")
    return zeros


def from_blocks(blocks: NDArray[Any], shape: tuple[int, ...], fmt: Format) -> NDArray[Any]:
    """Undo `to_blocks`: drop the padding and restore `shape`."""
    if fmt.tile is not None:
        return from_tiles(blocks, shape, fmt.tile)
    if fmt.block_size is None:
        return blocks.reshape(shape)
    width = math.prod(shape) if fmt.block == "flat" else shape[-1]
    padded = -(-width // fmt.block_size) * fmt.block_size
    return blocks.reshape(-1, padded)[:, :width].reshape(shape)


def fit_grid(blocks: NDArray[Any], fmt: Format, *, count: int | None = None) -> Grid:
    """Return the parameters that the format chooses for these blocks, which are the whole tensor.

    Args:
        blocks: weights by block, float32 (n_blocks, block).
        fmt: the format.
        count: weights of the tensor. bitsandbytes stores at least `fmt.floor` for a last partial flat block.

    Raises:
        ValueError: a weight is not finite, or a parameter overflows the dtype that stores it.
    """
    if not np.isfinite(blocks).all():
        raise ValueError(f"weights must be finite to be quantized to {fmt.name}, got nan or inf")
    grid = FITS[fmt.statistic](blocks, fmt)
    if count is not None and count % blocks.shape[1]:
        own = grid.encoder or grid
        own.scale[-1] = np.maximum(own.scale[-1], np.float32(fmt.floor))
        grid = grid if grid.encoder is None else nest(own)
    if not (np.isfinite(grid.scale).all() and (grid.low is None or np.isfinite(grid.low).all())):
        raise ValueError(f"the range of a block must be a finite {fmt.storage} in {fmt.name}, got inf")
    return grid


def code_units(blocks: NDArray[Any], grid: Grid, fmt: Format, *, count: int | None = None) -> NDArray[Any]:
    """Return `v = (w - low) / scale + zero` in float32, not rounded; 0 + zero where a zero scale says nothing.

    Args:
        blocks: weights by block, float32 (n_blocks, block).
        grid: the parameters of the blocks; those that make the codes are used.
        fmt: the format.
        count: weights of the tensor. A last partial flat block divides where full ones multiply.
    """
    grid = grid.encoder or grid
    return _ratio(blocks, grid, fmt, count) + grid.zero


def encode(blocks: NDArray[Any], grid: Grid, fmt: Format, *, count: int | None = None) -> NDArray[Any]:
    """Return the codes, int16 (n_blocks, block): indices into `fmt.levels`."""
    grid = grid.encoder or grid
    ratio = _ratio(blocks, grid, fmt, count)
    with np.errstate(over="ignore"):  # a clipped ratio plus a zero point of its sign is inf: an end level
        return ROUNDINGS[fmt.rounding](ratio, grid.zero, fmt)


def decode(codes: NDArray[Any], grid: Grid, fmt: Format) -> NDArray[Any]:
    """Return the values that the deployed model computes with, float32 (n_blocks, block)."""
    levels = np.asarray(fmt.levels, np.float32)
    with np.errstate(under="ignore", over="ignore"):
        value = (levels[codes] - grid.zero) * grid.scale
        value = value if fmt.unit == 1.0 else value * np.float32(fmt.unit)
        return value if grid.low is None else value + grid.low


def _ratio(blocks: NDArray[Any], grid: Grid, fmt: Format, count: int | None) -> NDArray[Any]:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        shifted = blocks if grid.low is None else blocks - grid.low
        ratio, usable = ARITHMETICS[fmt.arithmetic](shifted, grid.scale, fmt)
        if count is not None and count % blocks.shape[1]:
            ratio[-1] = blocks[-1] / np.maximum(grid.scale[-1], np.float32(fmt.floor))
    # a ratio on the grid of another tensor can overflow: clipped, not 0
    largest = np.finfo(np.float32).max
    return np.where(usable, np.clip(ratio, -largest, largest), np.float32(0))


Ratio = tuple[NDArray[Any], NDArray[Any]]  # the ratio, and where the scale says something


def _divide(blocks: NDArray[Any], scale: NDArray[Any], fmt: Format) -> Ratio:
    return blocks / scale, scale != 0


def _multiply(blocks: NDArray[Any], scale: NDArray[Any], fmt: Format) -> Ratio:
    scale = np.maximum(scale, np.float32(fmt.floor)) if fmt.floor else scale
    reciprocal = np.float32(1) / scale * np.float32(fmt.divisor)  # torch's `127.0 / scale`
    return blocks * reciprocal, np.isfinite(reciprocal)


def _reciprocal(blocks: NDArray[Any], scale: NDArray[Any], fmt: Format) -> Ratio:
    reciprocal = np.float32(1) / scale
    return blocks * reciprocal, np.isfinite(reciprocal)


def _inverse(blocks: NDArray[Any], scale: NDArray[Any], fmt: Format) -> Ratio:
    return blocks * scale, np.isfinite(scale)


ARITHMETICS: Mapping[str, Callable[[NDArray[Any], NDArray[Any], Format], Ratio]] = {
    "divide": _divide,
    "multiply": _multiply,
    "reciprocal": _reciprocal,
    "inverse": _inverse,
}


def quantize(w: NDArray[Any], fmt: Format) -> tuple[NDArray[Any], Grid]:
    """Return the codes in the shape of `w` (int16, indices into `fmt.levels`) and the grid that was fitted to it.

    Args:
        w: weights, any shape, any float dtype; computed in float32.
        fmt: the format.

    Raises:
        ValueError: the tensor is empty, a weight is not finite, or the format cannot take it.
    """
    blocks, count = to_blocks(w, fmt), _flat_count(w, fmt)
    grid = fit_grid(blocks, fmt, count=count)
    return from_blocks(encode(blocks, grid, fmt, count=count), w.shape, fmt), grid


def round_trip(w: NDArray[Any], fmt: Format) -> NDArray[Any]:
    """Return Q(w): quantize and dequantize, float32 in the shape of `w`."""
    blocks, count = to_blocks(w, fmt), _flat_count(w, fmt)
    grid = fit_grid(blocks, fmt, count=count)
    codes = encode(blocks, grid, fmt, count=count)
    return from_blocks(decode(codes, grid, fmt), w.shape, fmt)


def _flat_count(w: NDArray[Any], fmt: Format) -> int | None:
    return w.size if fmt.block == "flat" else None
