"""The parameters of HQQ (Badri & Shaji 2023): an inverse scale, and a zero point that is not rounded."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.formats.description import Format

Array = NDArray[Any]
LEAST_RANGE = np.float32(1e-4)  # a block whose range is not larger gets the inverse scale 1
LARGEST_INVERSE = np.float32(2e4)
NORM, BETA, STEPS = np.float32(0.7), np.float32(10), 20  # of the proximal solver


class Affine(NamedTuple):
    """`w * inverse + zero` are the code units of a block; float32 (n_blocks, 1)."""

    inverse: Array
    zero: Array


def min_max_affine(blocks: Array, fmt: Format) -> Affine:
    """Return `inverse = top / (max - min)` and `zero = -min * inverse`: the block fills the levels 0 … top."""
    low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
    with np.errstate(over="ignore", divide="ignore"):
        spread = high - low
        inverse = np.float32(1) / spread * np.float32(fmt.divisor)
        inverse = np.where(spread <= LEAST_RANGE, np.float32(1), inverse)
        inverse = np.minimum(inverse, LARGEST_INVERSE)
    return Affine(inverse, -low * inverse)


def proximal_affine(blocks: Array, fmt: Format) -> Affine:
    """Return the zero points that the half-quadratic solver reaches from `min_max_affine`; the scales are kept.

    A step sets `e = shrink(w - Q(w))` and `zero = mean(code - (w - e) * inverse)`, the zero point that fits the codes
    best once the outliers `e` are taken out. It stops when the mean error of the whole tensor no longer falls, and
    keeps the zero point of the step that did not help, as the library does. Means are float64, rounded once: the
    library's float32 sums differ from them by their own rounding.
    """
    inverse, zero = min_max_affine(blocks, fmt)
    best = np.inf
    for _ in range(STEPS):
        codes = np.clip(np.rint(blocks * inverse + zero), fmt.levels[0], fmt.levels[-1])
        values = (codes - zero) / inverse
        outliers = _shrink(blocks - values)
        fitted = codes - (blocks - outliers) * inverse
        zero = fitted.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
        error = float(np.abs(blocks - values).mean(dtype=np.float64))
        if not error < best:
            break
        best = error
    return Affine(inverse, zero)


def _shrink(x: Array) -> Array:
    """Return `sign(x) max(|x| - |x|^(p - 1) / beta, 0)`: the proximal step of |x|^p, generalized soft thresholding."""
    size = np.abs(x)
    with np.errstate(divide="ignore", over="ignore"):
        threshold = np.float32(1) / BETA * size ** (NORM - np.float32(1))
    return np.sign(x) * np.maximum(size - threshold, np.float32(0))
