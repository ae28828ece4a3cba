"""Double quantization of bitsandbytes (arXiv 2305.14314, §3): the absmax of NF4 and FP4 blocks in 8 bits.

Not a `Format`: a description chooses the parameters of a block from that block, or from a maximum over the tensor that
rounds to the same float32 in any order. Here they hang on the mean over all blocks, a float32 sum whose last bits are
those of the order in which a machine adds, so the description could not say what the bits are. Given the mean, all the
rest is exact.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.formats.description import Format
from unforgotten.theory.formats.grids import Grid
from unforgotten.theory.formats.reference import decode, encode, fit_grid, from_blocks, to_blocks

Array = NDArray[Any]
NESTED_BLOCK = 256  # absmaxes that share one
BINS = 65535  # of [-1, 1]; codes are looked up by bin


class DoubleQuantized(NamedTuple):
    """What is stored, and what is read back.

    Attributes:
        codes: indices into the levels of the format, int16 in the shape of the weights.
        offset: the mean absmax, float32.
        nested_codes: indices into `dynamic_map`, uint8 (n_blocks,).
        nested_absmax: largest |absmax - offset| of every 256 blocks, float32.
        absmax: absmax that blocks are read with, float32 (n_blocks,).
        values: dequantized weights, float32 in the shape of the weights.
    """

    codes: Array
    offset: np.float32
    nested_codes: Array
    nested_absmax: Array
    absmax: Array
    values: Array


@cache
def dynamic_map() -> Array:
    """Return the 256 numbers of the signed dynamic type (arXiv 1511.04561), float32, ascending.

    0, 1, and for each exponent i in 0 … 6 the midpoints, times ±10^(i-6), of 2^i equal parts of [0.1, 1]. There is no -1.
    """
    numbers: list[Array] = [np.array([0, 1], np.float32)]
    for i in range(7):
        ends = _equal_parts(2**i)
        middles = np.float32(10.0 ** (i - 6)) * ((ends[:-1] + ends[1:]) / np.float32(2))
        numbers += [middles, -middles]
    return np.sort(np.concatenate(numbers))


def _equal_parts(parts: int) -> Array:
    """Return the ends of equal parts of [0.1, 1], each from the nearer end, rounded once, as torch does."""
    low, high = np.float32(0.1), np.float32(1)
    step, i = float((high - low) / np.float32(parts)), np.arange(parts + 1)
    from_low = float(low) + step * i
    from_high = 1 - step * (parts - i)
    return np.where(2 * i < parts, from_low, from_high).astype(np.float32)


@cache
def bin_codes() -> Array:
    """Return the code nearest to the centre -1 + 2 i / 65535 of each bin, uint8 (65536,)."""
    numbers = dynamic_map().astype(np.float64)
    centres = 2 * np.arange(BINS + 1) / BINS - 1
    return np.searchsorted((numbers[:-1] + numbers[1:]) / 2, centres).astype(np.uint8)


def quantize_dynamic(x: Array) -> tuple[Array, Array]:
    """Return the 8-bit codes of float32 numbers by blocks of 256, and the absmax of each block.

    The code of x is that of the bin of `x (1 / absmax)`, so near a midpoint it is not always the nearest. Where the
    reciprocal overflows, x > 0 has the highest code and the rest, nan from 0 inf with them, the lowest.

    Args:
        x: numbers, float32 (n,), finite.

    Returns:
        Codes uint8 (n,), absmax float32 (ceil(n / 256),).
    """
    blocks = np.pad(x, (0, -len(x) % NESTED_BLOCK)).reshape(-1, NESTED_BLOCK)
    absmax = np.abs(blocks).max(axis=1)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        ratio = np.nan_to_num(blocks * (np.float32(1) / absmax[:, None]), nan=-1.0)
    unit = np.clip(ratio, -1, 1).astype(np.float32)
    bins = (unit + np.float32(1)) * np.float32(0.5) * np.float32(BINS) + np.float32(0.5)
    return bin_codes()[bins.astype(np.int64)].ravel()[: len(x)], absmax


def dequantize_dynamic(codes: Array, absmax: Array) -> Array:
    """Return `map[code] * absmax`, float32 (n,)."""
    return dynamic_map()[codes] * np.repeat(absmax, NESTED_BLOCK)[: len(codes)]


def double_quantize(w: Array, fmt: Format, *, offset: np.float32 | None = None) -> DoubleQuantized:
    """Quantize to NF4 or FP4 with nested absmax: read with `map[q] s + offset`, q the code of `absmax - offset`.

    Where blocks differ much the absmax read back can be negative, and then every sign in the block is turned.

    Args:
        w: weights, any shape, any float dtype.
        fmt: nf4-bN or fp4-bN.
        offset: mean absmax of a library, float32; without one the mean is summed in float64 and rounded once.

    Raises:
        ValueError: the format stores no absmax of flat blocks, or as `quantize`.
    """
    if (fmt.block, fmt.arithmetic) != ("flat", "multiply"):
        raise ValueError(f"double quantization must be of nf4-bN or fp4-bN, got format={fmt.name!r}")
    blocks = to_blocks(w, fmt)
    grid = fit_grid(blocks, fmt, count=w.size)
    codes = encode(blocks, grid, fmt, count=w.size)
    own = grid.scale[:, 0]
    mean = np.float32(own.mean(dtype=np.float64)) if offset is None else np.float32(offset)
    nested_codes, nested_absmax = quantize_dynamic(own - mean)
    absmax = dequantize_dynamic(nested_codes, nested_absmax) + mean
    values = decode(codes, Grid(absmax[:, None], grid.zero), fmt)
    return DoubleQuantized(
        from_blocks(codes, w.shape, fmt), mean, nested_codes, nested_absmax, absmax, from_blocks(values, w.shape, fmt)
    )
