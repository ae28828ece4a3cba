"""Double quantization of bitsandbytes (arXiv 2305.14314, §3): the absmax of NF4 and FP4 blocks in 8 bits.

The formats nf4-bN-dq and fp4-bN-dq subtract the mean that `dynamic.exact_mean` has. A library subtracts the sum of its own
machine: `double_quantize` takes that, and all the rest is exact.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.formats.description import Format
from unforgotten.theory.formats.dynamic import exact_mean, nested
from unforgotten.theory.formats.grids import Grid
from unforgotten.theory.formats.reference import decode, encode, fit_grid, from_blocks, to_blocks

Array = NDArray[Any]


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


def double_quantize(w: Array, fmt: Format, *, offset: np.float32 | None = None) -> DoubleQuantized:
    """Quantize to NF4 or FP4 with nested absmax: read with `map[q] s + offset`, q the code of `absmax - offset`.

    Where blocks differ much the absmax read back can be negative, and then every sign in the block is turned.

    Args:
        w: weights, any shape, any float dtype.
        fmt: nf4-bN or fp4-bN.
        offset: mean absmax of a library, float32; without one that of `exact_mean`.

    Raises:
        ValueError: the format stores no absmax of flat blocks, or as `quantize`.
    """
    if (fmt.block, fmt.arithmetic, fmt.statistic) != ("flat", "multiply", "absmax"):
        raise ValueError(f"double quantization must be of nf4-bN or fp4-bN, got format={fmt.name!r}")
    blocks = to_blocks(w, fmt)
    grid = fit_grid(blocks, fmt, count=w.size)
    codes = encode(blocks, grid, fmt, count=w.size)
    own = grid.scale[:, 0]
    found = nested(own, exact_mean(own) if offset is None else np.float32(offset))
    values = decode(codes, Grid(found.read[:, None], grid.zero), fmt)
    return DoubleQuantized(from_blocks(codes, w.shape, fmt), *found, from_blocks(values, w.shape, fmt))
