"""The 8-bit dynamic type of bitsandbytes, in which double quantization keeps the absmaxes of NF4 and FP4 blocks.

`nested` takes the absmaxes of a tensor and gives what is stored of them and what is read back, exactly as bitsandbytes computes
it on a CPU from the mean it is given. The mean is a float32 sum whose last bits are those of the order in which a machine adds;
`exact_mean` is the one of no order.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
NESTED_BLOCK = 256  # absmaxes that share one
BINS = 65535  # of [-1, 1]; codes are looked up by bin
WORST = 0.9 / 64 / 2 + 1.0 / BINS
"""Largest distance of a number in [-1, 1] from the one that its code stands for: half a part of the widest, and half a bin."""


class Nested(NamedTuple):
    """Absmaxes of a tensor in 8 bits.

    Attributes:
        offset: mean that is subtracted first, float32.
        codes: indices into `dynamic_map`, uint8 (n_blocks,).
        absmax: largest |absmax - offset| of every 256 blocks, float32.
        read: absmaxes that blocks are read with, float32 (n_blocks,).
    """

    offset: np.float32
    codes: Array
    absmax: Array
    read: Array


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


def exact_mean(own: Array) -> np.float32:
    """Return the mean of numbers by their exact sum, rounded to float64, divided, and rounded to float32.

    A sum in float32 with h additions in a row on its longest way is off by at most h / (2^24 - h) of itself, h < 2^24: about
    2^-20 where a machine adds in lanes and trees, up to n / 2^24 where it adds n numbers one after another.

    Args:
        own: numbers >= 0, float32 (n,).
    """
    return np.float32(math.fsum(own.tolist()) / len(own))


def nested(own: Array, offset: np.float32) -> Nested:
    """Quantize absmaxes and read them back: `map[q] s + offset`, q the code of `absmax - offset`, s the largest of 256.

    Where 1 / s is finite, what is read is at most `WORST s` from the absmax, and roundings of float32, whatever the offset: two
    machines whose means differ read absmaxes that are at most `WORST (s + s')` apart.

    Args:
        own: absmaxes of the blocks of a tensor, float32 (n_blocks,).
        offset: mean of them, as it was summed.
    """
    codes, absmax = quantize_dynamic(own - offset)
    return Nested(offset, codes, absmax, dequantize_dynamic(codes, absmax) + offset)
