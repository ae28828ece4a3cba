"""Weights by the kind of tensor that they imitate, drawn in batches: every row is a block with a size of its own.

Hypothesis draws the kind and a seed, `strategies.tensors` calls the kind with `rng_for` of them; vectorized tests
draw thousands of rows at once.

Takes a generator, a format and a shape (rows, block); gives float32 weights of that shape.

>>> from unforgotten.theory.formats.names import format_named
>>> normal(np.random.default_rng(0), format_named("int4-g32"), (2, 32)).shape
(2, 32)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.formats.names import Format
from unforgotten.theory.formats.reference import decode, encode, fit_grid

Weights = NDArray[Any]
Shape = tuple[int, int]
LARGEST = 2.0**115  # LLM.int8 computes 127 * absmax on the way to a value
LARGEST_FLOAT16 = 2.0**15
HEAVY_FREEDOM = 2.0  # degrees of freedom of Student's t: no variance


def largest(fmt: Format) -> float:
    """Return the largest magnitude: up to it weights overflow no parameter of the format."""
    return LARGEST_FLOAT16 if fmt.storage == "float16" else LARGEST


def sampled(kind: str, rng: np.random.Generator, fmt: Format, shape: Shape) -> Weights:
    """Draw float32 rows of one of `WEIGHTS`; magnitudes up to `largest`."""
    top = np.float32(largest(fmt))
    return np.asarray(np.clip(WEIGHTS[kind](rng, fmt, shape), -top, top), np.float32)


def normal(rng: np.random.Generator, fmt: Format, shape: Shape) -> Weights:
    """Draw Gaussian weights, each row with a standard deviation of its own in [2^-12, 2^4]."""
    return sizes(rng, shape[0]) * rng.standard_normal(shape).astype(np.float32)


def sizes(rng: np.random.Generator, rows: int) -> Weights:
    """Draw a typical size for each row, (rows, 1)."""
    return (2.0 ** rng.uniform(-12, 4, (rows, 1))).astype(np.float32)


def heavy_tailed(rng: np.random.Generator, fmt: Format, shape: Shape) -> Weights:
    """Draw from Student's t with HEAVY_FREEDOM degrees of freedom."""
    return sizes(rng, shape[0]) * rng.standard_t(HEAVY_FREEDOM, shape).astype(np.float32)


def outliers(rng: np.random.Generator, fmt: Format, shape: Shape) -> Weights:
    """Draw Gaussian weights, but for one a row that is 2^4 to 2^40 times as large."""
    w = normal(rng, fmt, shape)
    at = np.arange(shape[0]), rng.integers(0, shape[1], shape[0])
    w[at] *= (2.0 ** rng.uniform(4, 40, shape[0])).astype(np.float32)
    return w


def ties(rng: np.random.Generator, fmt: Format, shape: Shape) -> Weights:
    """Draw weights on the thresholds, one ulp to either side, and on the levels, where a step is a power of two."""
    v = rng.choice(np.array(around_thresholds(fmt), np.float32), shape)
    exponent = 7 if fmt.storage == "float16" else 60
    step = np.ldexp(np.float32(1), rng.integers(-exponent, exponent + 1, (shape[0], 1)))
    return on_own_grid(v, fmt, min(fmt.block_size or shape[1], shape[1])) * step


def around_thresholds(fmt: Format) -> list[float]:
    """List code units: every threshold, its two neighbours in float32, every level."""
    t = fmt.thresholds
    infinity = np.float32(np.inf)
    near = [*t, *np.nextafter(t, -infinity), *np.nextafter(t, infinity)]
    return [*(float(x) for x in near), *fmt.levels]


def on_own_grid(v: Weights, fmt: Format, size: int) -> Weights:
    """Return weights whose own grid is the unit grid, so that v are their code units: the block's ends are set.

    They are the first entries of every `size` in a row; in flat blocks as they fall.
    """
    if fmt.zero == "none":
        anchor = fmt.divisor if fmt.scale_rule in ("quotient", "float8 of tensor") else fmt.levels[-1]
        v[:, ::size] = anchor
        return np.asarray(np.clip(v, -abs(anchor), abs(anchor)), np.float32)
    zero = (len(fmt.levels) - 1) // 3
    v = v - np.float32(fmt.levels[0] + zero)
    v[:, ::size] = -zero
    v[:, 1::size] = len(fmt.levels) - 1 - zero
    return np.asarray(v, np.float32)


def all_equal(rng: np.random.Generator, fmt: Format, shape: Shape) -> Weights:
    """Draw one number a row."""
    return np.broadcast_to(normal(rng, fmt, (shape[0], 1)), shape).copy()


def zero_blocks(rng: np.random.Generator, fmt: Format, shape: Shape) -> Weights:
    """Draw zeros, with a share of other weights that is another one in each row, from none to all."""
    kept = rng.random(shape) < rng.uniform(-0.25, 1, (shape[0], 1))
    return np.where(kept, normal(rng, fmt, shape), np.float32(0))


def subnormals(rng: np.random.Generator, fmt: Format, shape: Shape) -> Weights:
    """Draw float32 subnormals and the first normals, rows with few and rows with many digits."""
    top = 2 ** rng.integers(1, 25, (shape[0], 1))
    return np.ldexp(rng.integers(-top, top + 1, shape).astype(np.float32), -149)


def bfloat16(rng: np.random.Generator, fmt: Format, shape: Shape) -> Weights:
    """Draw Gaussian weights on the lattice of bfloat16."""
    return to_bfloat16(normal(rng, fmt, shape))


def to_bfloat16(w: Weights) -> Weights:
    """Round to nearest even in bfloat16, as float32."""
    return np.asarray(w.astype(ml_dtypes.bfloat16).astype(np.float32))


def float16(rng: np.random.Generator, fmt: Format, shape: Shape) -> Weights:
    """Draw Gaussian weights on the lattice of float16, the smallest of them subnormal there."""
    small = (2.0 ** rng.uniform(-14, 1, (shape[0], 1))).astype(np.float32)
    return (small * normal(rng, fmt, shape)).astype(np.float16).astype(np.float32)


def already_quantized(rng: np.random.Generator, fmt: Format, shape: Shape) -> Weights:
    """Draw values of the format itself: blocks of its size where the rows divide into them, otherwise rows."""
    w = np.clip(normal(rng, fmt, shape), -LARGEST_FLOAT16, LARGEST_FLOAT16).astype(np.float32)
    size = fmt.block_size or shape[1]
    blocks = w.reshape(-1, size) if shape[1] % size == 0 else w
    grid = fit_grid(blocks, fmt)
    return decode(encode(blocks, grid, fmt), grid, fmt).reshape(shape)


def huge_range(rng: np.random.Generator, fmt: Format, shape: Shape) -> Weights:
    """Draw signs and uniform exponents: from the smallest normal number to the largest that the format takes."""
    exponent = rng.uniform(-126, np.log2(largest(fmt)), shape)
    return (rng.choice([-1.0, 1.0], shape) * 2.0**exponent).astype(np.float32)


WEIGHTS: Mapping[str, Callable[[np.random.Generator, Format, Shape], Weights]] = {
    "normal": normal,
    "heavy-tailed": heavy_tailed,
    "outliers": outliers,
    "ties": ties,
    "all equal": all_equal,
    "zero blocks": zero_blocks,
    "subnormals": subnormals,
    "bfloat16": bfloat16,
    "float16": float16,
    "already quantized": already_quantized,
    "huge range": huge_range,
}


def mixed(rng: np.random.Generator, fmt: Format, rows: int, size: int) -> Weights:
    """Draw blocks of every kind in turn, (rows, size)."""
    share = -(-rows // len(WEIGHTS))
    parts = [sampled(kind, rng, fmt, (share, size)) for kind in WEIGHTS]
    return np.stack(parts, axis=1).reshape(-1, size)[:rows]
