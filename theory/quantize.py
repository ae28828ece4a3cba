"""The numpy reference: codes and values of a tensor in any format, bit for bit as the kernels compute them.

Everything is float32, in the order of operations of the library that the format names. Slow and plain on
purpose: faster paths are tested against this one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.formats import Format


@dataclass(frozen=True)
class Grid:
    """The parameters of every block of one tensor.

    Attributes:
        scale: float32, (n_blocks, 1). The step, or the absmax, as the format stores it.
        zero: float32 integers, (n_blocks, 1); zeros where the format has no zero point.
    """

    scale: NDArray[Any]
    zero: NDArray[Any]


def to_blocks(w: NDArray[Any], fmt: Format) -> NDArray[Any]:
    """The tensor as (n_blocks, block) float32, the last block of a row (or of a flat tensor) filled with zeros.

    Zeros change no scale: absmax ignores them, and a range always contains 0.

    Raises:
        ValueError: the tensor is empty or has no rows.
    """
    if w.ndim < 1 or w.size == 0:
        raise ValueError(f"a tensor to quantize must not be empty, got shape={w.shape}")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, which fit_grid refuses
        w = np.asarray(w, np.float32)
    rows = {"tensor": (1, w.size), "flat": (1, w.size)}.get(fmt.block, (-1, w.shape[-1]))
    w = w.reshape(rows)
    if fmt.block_size is None:
        return w
    padding = -w.shape[1] % fmt.block_size
    return np.pad(w, ((0, 0), (0, padding))).reshape(-1, fmt.block_size)


def from_blocks(blocks: NDArray[Any], shape: tuple[int, ...], fmt: Format) -> NDArray[Any]:
    """Undo `to_blocks`: drop the padding and restore `shape`."""
    if fmt.block_size is None:
        return blocks.reshape(shape)
    width = math.prod(shape) if fmt.block == "flat" else shape[-1]
    padded = -(-width // fmt.block_size) * fmt.block_size
    return blocks.reshape(-1, padded)[:, :width].reshape(shape)


def fit_grid(blocks: NDArray[Any], fmt: Format, *, count: int | None = None) -> Grid:
    """The scales and zero points that the format chooses for these blocks.

    Args:
        blocks: float32 (n_blocks, block).
        fmt: the format.
        count: weights of the tensor. bitsandbytes stores at least `fmt.floor` for a last partial flat block.

    Raises:
        ValueError: a weight is not finite, or a range overflows float32.
    """
    if not np.isfinite(blocks).all():
        raise ValueError(f"weights must be finite to be quantized to {fmt.name}, got nan or inf")
    if fmt.statistic == "absmax":
        absmax = np.abs(blocks).max(axis=1, keepdims=True)
        if count is not None and count % blocks.shape[1]:
            absmax[-1] = np.maximum(absmax[-1], np.float32(fmt.floor))
        scale = absmax / np.float32(fmt.divisor) if fmt.arithmetic == "divide" else absmax
        return Grid(scale, np.zeros_like(scale))
    low = np.minimum(blocks.min(axis=1, keepdims=True), np.float32(0))
    high = np.maximum(blocks.max(axis=1, keepdims=True), np.float32(0))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        scale = (high - low) / np.float32(fmt.divisor)
        zero = np.nan_to_num(np.rint(-low / scale), nan=0.0, posinf=0.0)
        zero = np.minimum(
            zero, np.float32(fmt.levels[-1])
        )  # a subnormal scale is rounded too far down
    if not np.isfinite(scale).all():
        raise ValueError(f"the range of a block must be a finite float32 in {fmt.name}, got inf")
    return Grid(scale, zero)


def code_units(
    blocks: NDArray[Any], grid: Grid, fmt: Format, *, count: int | None = None
) -> NDArray[Any]:
    """`v = w / scale + zero` in float32, not rounded; 0 + zero where a zero scale says nothing.

    Args:
        blocks: float32 (n_blocks, block).
        grid: the parameters of the blocks.
        fmt: the format.
        count: weights of the tensor. A last partial flat block divides where full ones multiply.
    """
    return _ratio(blocks, grid, fmt, count) + grid.zero


def _ratio(blocks: NDArray[Any], grid: Grid, fmt: Format, count: int | None) -> NDArray[Any]:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        if fmt.arithmetic == "divide":
            ratio, usable = blocks / grid.scale, grid.scale > 0
        else:
            scale = np.maximum(grid.scale, np.float32(fmt.floor)) if fmt.floor else grid.scale
            reciprocal = np.float32(1) / scale * np.float32(fmt.divisor)  # torch's `127.0 / scale`
            ratio, usable = blocks * reciprocal, np.isfinite(reciprocal)
            if count is not None and count % blocks.shape[1]:
                ratio[-1] = blocks[-1] / scale[-1]
    largest = np.finfo(
        np.float32
    ).max  # a ratio on the grid of another tensor can overflow: clipped, not 0
    return np.where(usable, np.clip(ratio, -largest, largest), np.float32(0))


def encode(
    blocks: NDArray[Any], grid: Grid, fmt: Format, *, count: int | None = None
) -> NDArray[Any]:
    """Codes, int16 (n_blocks, block): indices into `fmt.levels`."""
    ratio = _ratio(blocks, grid, fmt, count)
    if fmt.rounding == "half-lower":
        return np.searchsorted(fmt.thresholds, ratio, side="left").astype(np.int16)
    code = np.rint(ratio) + grid.zero
    return (np.clip(code, fmt.levels[0], fmt.levels[-1]) - fmt.levels[0]).astype(np.int16)


def decode(codes: NDArray[Any], grid: Grid, fmt: Format) -> NDArray[Any]:
    """Values, float32 (n_blocks, block), that the deployed model computes with."""
    levels = np.asarray(fmt.levels, np.float32)
    with np.errstate(under="ignore", over="ignore"):
        value = (levels[codes] - grid.zero) * grid.scale
        return value if fmt.unit == 1.0 else value * np.float32(fmt.unit)


def quantize(w: NDArray[Any], fmt: Format) -> tuple[NDArray[Any], Grid]:
    """Codes in the shape of `w` (int16, indices into `fmt.levels`) and the grid that was fitted to it.

    Args:
        w: any shape, any float dtype; computed in float32.
        fmt: the format.

    Raises:
        ValueError: the tensor is empty or a weight is not finite.
    """
    blocks, count = to_blocks(w, fmt), _flat_count(w, fmt)
    grid = fit_grid(blocks, fmt, count=count)
    return from_blocks(encode(blocks, grid, fmt, count=count), w.shape, fmt), grid


def round_trip(w: NDArray[Any], fmt: Format) -> NDArray[Any]:
    """Q(w): quantize and dequantize, float32 in the shape of `w`."""
    blocks, count = to_blocks(w, fmt), _flat_count(w, fmt)
    grid = fit_grid(blocks, fmt, count=count)
    codes = encode(blocks, grid, fmt, count=count)
    return from_blocks(decode(codes, grid, fmt), w.shape, fmt)


def _flat_count(w: NDArray[Any], fmt: Format) -> int | None:
    return w.size if fmt.block == "flat" else None
