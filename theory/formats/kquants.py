"""Q3_K, Q4_K, Q5_K and Q6_K of GGUF: super-blocks of 256 weights whose scales are searched, bit for bit as ggml's C does it.

A scale is not a statistic of the block: it is the best of 21 (Q4_K), 16 (Q5_K) or 19 (Q6_K) candidates under a weighted squared
error, or what codes leave that are changed one by one (Q3_K), and is then itself rounded to 6 or 8 bits. So the grid moves with
every weight of its sub-block, by jumps.

Everything is float32, one rounding an operation, sums in the order of the weights and without fused
multiply-add, as the compiler makes of ggml 0.25.3 on x86-64 without `-ffast-math`.

Takes super-blocks, float32 (n, 256); gives `KBlocks`: codes, the scales of sub-blocks, and the numbers they multiply.

>>> found = q4_k(np.linspace(-1, 1, 256, dtype=np.float32)[None])
>>> found.codes.shape, int(found.codes.max())
((1, 256), 15)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SUPER_BLOCK = 256
SMALLEST = np.float32(1e-15)  # a sub-block of Q6_K, or its largest scale, below this is zero
PASSES = 5  # of Q3_K over the codes of a sub-block
ONE, ZERO, TENTH = np.float32(1), np.float32(0), np.float32(0.1)


@dataclass(frozen=True)
class KBlocks:
    """Quantized super-blocks; a weight is `step * (code - offset) - low` of its sub-block.

    Attributes:
        codes: codes of the weights, uint8 (n, 256).
        scales: the rounded sub-scales, int16 (n, 8) in 0 … 63 (Q4_K, Q5_K), or (n, 16) in -32 … 31 (Q3_K), -128 … 127 (Q6_K).
        mins: the rounded minima, int16 in 0 … 63, same shape; zeros in Q3_K and Q6_K.
        d: float16 (n,), the unit of `scales`.
        dmin: float16 (n,), the unit of `mins`.
        offset: code of the level 0: 0 (Q4_K, Q5_K), 4 (Q3_K) or 32 (Q6_K).
    """

    codes: NDArray[Any]
    scales: NDArray[Any]
    mins: NDArray[Any]
    d: NDArray[Any]
    dmin: NDArray[Any]
    offset: int

    @property
    def step(self) -> NDArray[Any]:
        """Distance of neighbouring levels, float32 (n, sub-blocks); negative where Q3_K or Q6_K mirrors a sub-block."""
        return self.d.astype(np.float32)[:, None] * self.scales.astype(np.float32)

    @property
    def low(self) -> NDArray[Any]:
        """Minus the value of code 0 (Q4_K, Q5_K), float32 (n, sub-blocks) >= 0; zeros in Q3_K and Q6_K."""
        return self.dmin.astype(np.float32)[:, None] * self.mins.astype(np.float32)

    @property
    def values(self) -> NDArray[Any]:
        """Decoded weights, float32 (n, 256)."""
        n, subs = self.scales.shape
        level = self.codes.reshape(n, subs, -1).astype(np.float32) - np.float32(self.offset)
        return (self.step[:, :, None] * level - self.low[:, :, None]).reshape(n, SUPER_BLOCK)


class Candidates(NamedTuple):
    """The candidates of `search_affine`: codes 0 … top, and `(top + first + i/10) / (max - min)` for i = 0 … tried - 1."""

    top: int
    first: np.float32
    tried: int


OF_Q4_K = Candidates(15, np.float32(-1), 21)
OF_Q5_K = Candidates(31, np.float32(-0.5), 16)


class Search(NamedTuple):
    """The winning candidate of every sub-block: float32 (m,), float32 (m,), integers (m, size)."""

    scale: NDArray[Any]
    low: NDArray[Any]
    codes: NDArray[Any]


def q3_k(blocks: NDArray[Any]) -> KBlocks:
    """Quantize super-blocks to Q3_K: 16 sub-blocks of 16, each with a signed scale of 6 bits.

    Args:
        blocks: super-blocks, float32 (n, 256).

    Raises:
        ValueError: the shape is not (n, 256), a weight is not finite, or a scale overflows.
    """
    x = _checked(blocks, "Q3_K")
    with np.errstate(all="ignore"):
        found = search_one_by_one(x.reshape(-1, 16))
        scale = found.scale.reshape(-1, 16)
        if not np.isfinite(scale).all():  # where ggml takes a nan for the scale 0
            raise ValueError("the scales of Q3_K must fit float16, got inf")
        largest = np.take_along_axis(scale, np.abs(scale).argmax(axis=1)[:, None], axis=1)
        empty = largest == 0
        inverse = np.float32(-32) / np.where(empty, ONE, largest)
        scales = np.where(empty, -32, np.clip(nearest_int(inverse * scale), -32, 31)).astype(np.int16)
        d = np.where(empty, ZERO, ONE / inverse).astype(np.float16)[:, 0]
        fitted = KBlocks(found.codes.reshape(-1, SUPER_BLOCK), scales, np.zeros_like(scales), d, np.zeros_like(d), 4)
        return _requantize(x, fitted, (-4, 3), "Q3_K")


def q4_k(blocks: NDArray[Any]) -> KBlocks:
    """Quantize super-blocks to Q4_K: 8 sub-blocks of 32, each with a scale and a minimum of 6 bits.

    Args:
        blocks: super-blocks, float32 (n, 256).

    Raises:
        ValueError: the shape is not (n, 256), a weight is not finite, or a scale overflows float16.
    """
    return _affine_blocks(_checked(blocks, "Q4_K"), OF_Q4_K, "Q4_K")


def q5_k(blocks: NDArray[Any]) -> KBlocks:
    """Quantize super-blocks to Q5_K: as Q4_K, with 32 codes.

    Args:
        blocks: super-blocks, float32 (n, 256).

    Raises:
        ValueError: the shape is not (n, 256), a weight is not finite, or a scale overflows float16.
    """
    return _affine_blocks(_checked(blocks, "Q5_K"), OF_Q5_K, "Q5_K")


def _affine_blocks(x: NDArray[Any], candidates: Candidates, name: str) -> KBlocks:
    with np.errstate(all="ignore"):
        found = search_affine(x.reshape(-1, 32), candidates)
        scale, low = found.scale.reshape(-1, 8), found.low.reshape(-1, 8)
        (scales, d), (mins, dmin) = _six_bits(scale), _six_bits(low)
        fitted = KBlocks(found.codes.reshape(-1, SUPER_BLOCK), scales, mins, d, dmin, 0)
        return _requantize(x, fitted, (0, candidates.top), name)


def q6_k(blocks: NDArray[Any]) -> KBlocks:
    """Quantize super-blocks to Q6_K: 16 sub-blocks of 16, each with a signed scale of 8 bits.

    Args:
        blocks: super-blocks, float32 (n, 256).

    Raises:
        ValueError: the shape is not (n, 256), a weight is not finite, or a scale overflows float16.
    """
    x = _checked(blocks, "Q6_K")
    with np.errstate(all="ignore"):
        found = search_symmetric(x.reshape(-1, 16))
        scale = found.scale.reshape(-1, 16)
        largest = np.take_along_axis(scale, np.abs(scale).argmax(axis=1)[:, None], axis=1)
        empty = np.abs(largest) < SMALLEST
        inverse = np.float32(-128) / np.where(empty, ONE, largest)
        scales = np.where(empty, 0, np.minimum(127, nearest_int(inverse * scale))).astype(np.int16)
        d = np.where(empty, ZERO, ONE / inverse).astype(np.float16)[:, 0]
        codes = np.where(empty, 0, found.codes.reshape(-1, SUPER_BLOCK)).astype(np.uint8)
        fitted = KBlocks(codes, scales, np.zeros_like(scales), d, np.zeros_like(d), 32)
        return _requantize(x, fitted, (-32, 31), "Q6_K")


@np.errstate(all="ignore")  # as in C, 0/0 and overflow lose the comparison
def search_affine(x: NDArray[Any], candidates: Candidates = OF_Q4_K) -> Search:
    """Minimize over candidates c the sum of w (scale_c q + min_c - x)^2, w = rms(x) + |x|, min_c <= 0.

    Candidate 0 spreads the range over the codes. The others round with the steps of `candidates`
    and refit scale and minimum by weighted least squares. The search has a memory: `min` is that of the last
    accepted candidate, also in the range `max - min` from which the next one takes its step.

    Args:
        x: sub-blocks, float32 (m, 32).
        candidates: codes and steps.
    """
    top = np.float32(candidates.top)
    weight = np.sqrt(_sum(x * x) / np.float32(32))[:, None] + np.abs(x)
    sum_w, sum_x = _sum(weight), _sum(weight * x)
    low, high = np.minimum(x.min(axis=1), ZERO), x.max(axis=1)
    flat = high == low
    inverse = top / (high - low)
    scale, codes = ONE / inverse, _affine_codes(x, inverse, low, candidates.top)
    error = _affine_error(x, weight, scale, low, codes)
    for i in range(candidates.tried):
        factor = candidates.first + TENTH * np.float32(i) + top
        trial = _affine_codes(x, factor / (high - low), low, candidates.top)
        level = trial.astype(np.float32)
        sum_l = _sum(weight * level)
        sum_l2, sum_xl = _sum(weight * level * level), _sum(weight * level * x)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        new_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        positive = new_low > 0
        new_scale = np.where(positive, sum_xl / sum_l2, new_scale)
        new_low = np.where(positive, ZERO, new_low)
        new_error = _affine_error(x, weight, new_scale, new_low, trial)
        better = (determinant > 0) & (new_error < error)
        scale, low = np.where(better, new_scale, scale), np.where(better, new_low, low)
        error = np.where(better, new_error, error)
        codes = np.where(better[:, None], trial, codes)
    codes = np.where(flat[:, None], 0, codes).astype(np.uint8)
    return Search(np.where(flat, ZERO, scale), -low, codes)


@np.errstate(all="ignore")
def search_symmetric(x: NDArray[Any]) -> Search:
    """Maximize over candidates c (sum x^2 x q)^2 / sum x^2 q^2: the best one-parameter fit `scale * q`, weights x^2.

    Candidate i = -9 … 9 rounds with `-(32 + i/10) / m`, m the weight of largest magnitude with its sign, so that
    the longer side, -32, goes to m. Candidate 0 comes first; another must beat it.

    Args:
        x: sub-blocks, float32 (m, 16).
    """
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)[:, 0]
    empty = np.abs(largest) < SMALLEST
    pivot = np.where(empty, ONE, largest)
    scale = best = np.zeros_like(pivot)
    codes = np.zeros(x.shape, np.int32)
    for i in [0, *range(-9, 0), *range(1, 10)]:
        inverse = -(np.float32(32) + TENTH * np.float32(i)) / pivot
        trial = np.clip(nearest_int(inverse[:, None] * x), -32, 31)
        level = trial.astype(np.float32)
        sum_lx, sum_l2 = _sum(x * x * x * level), _sum(x * x * level * level)
        fit = np.where(sum_l2 != 0, sum_lx / sum_l2, ZERO)
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2) if i else np.full(len(x), True)
        scale, best = np.where(better, fit, scale), np.where(better, fit * sum_lx, best)
        codes = np.where(better[:, None], trial + 32, codes)
    codes = np.where(empty[:, None], 0, codes).astype(np.uint8)
    return Search(np.where(empty, ZERO, scale), np.zeros_like(scale), codes)


@np.errstate(all="ignore")
def search_one_by_one(x: NDArray[Any]) -> Search:
    """Raise (sum x^2 x q)^2 / sum x^2 q^2 by changing one code q of -4 … 3 at a time, five times over the sub-block.

    At first `q = -4 x / m`, m the weight of largest magnitude with its sign. A code may become that of its weight on the scale
    that the others leave. What is kept is the sums with that weight's terms taken out and put in again, each time rounded. No code
    changes where m > 0: then no term of sum x^2 x q is above 0, and ggml asks for a sum that is.

    Args:
        x: sub-blocks, float32 (m, 16).
    """
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)[:, 0]
    empty = np.abs(largest) < SMALLEST
    inverse = np.float32(-4) / np.where(empty, ONE, largest)
    level = np.clip(nearest_int(inverse[:, None] * x), -4, 3).astype(np.float32)
    sum_lx, sum_l2 = _sum(x * x * x * level), _sum(x * x * level * level)
    for i in PASSES * list(range(x.shape[1])):
        own, old = x[:, i], level[:, i]
        weight = own * own
        rest_lx, rest_l2 = sum_lx - weight * own * old, sum_l2 - weight * old * old
        new = np.clip(nearest_int(own * rest_l2 / rest_lx), -4, 3).astype(np.float32)
        new_lx, new_l2 = rest_lx + weight * own * new, rest_l2 + weight * new * new
        better = (rest_lx > 0) & (new != old) & (new_l2 > 0) & (new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2)
        level[:, i] = np.where(better, new, old)
        sum_lx, sum_l2 = np.where(better, new_lx, sum_lx), np.where(better, new_l2, sum_l2)
    scale = np.where(empty | (sum_l2 <= 0), ZERO, sum_lx / sum_l2)
    codes = np.where(empty[:, None], 0, level + 4).astype(np.uint8)
    return Search(scale, np.zeros_like(scale), codes)


def nearest_int(x: NDArray[Any]) -> NDArray[Any]:
    """Round x to the nearest integer, ties to even, for |x| <= 2^22 - 1; beyond, ggml's wrapped bits.

    Args:
        x: numbers, float32, any shape.
    """
    shifted = x + np.float32(12582912.0)
    return (shifted.astype(np.float32).view(np.int32) & 0x007FFFFF) - 0x00400000


def _sum(terms: NDArray[Any]) -> NDArray[Any]:
    """Add up rows from left to right, from +0. numpy's own `sum` adds in pairs and rounds otherwise."""
    return np.add.accumulate(terms, axis=1, dtype=np.float32)[:, -1] + ZERO


def _affine_codes(x: NDArray[Any], inverse: NDArray[Any], low: NDArray[Any], top: int) -> NDArray[Any]:
    return np.clip(nearest_int(inverse[:, None] * (x - low[:, None])), 0, top)


def _affine_error(
    x: NDArray[Any], weight: NDArray[Any], scale: NDArray[Any], low: NDArray[Any], codes: NDArray[Any]
) -> NDArray[Any]:
    difference = scale[:, None] * codes.astype(np.float32) + low[:, None] - x
    return _sum(weight * (difference * difference))


def _six_bits(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return sub-scales in 0 … 63 and their float16 unit, `max / 63`."""
    largest = np.maximum(x.max(axis=1, keepdims=True), ZERO)
    inverse = np.where(largest > 0, np.float32(63) / largest, ZERO)
    wrapped = nearest_int(inverse * x).astype(np.uint8)  # a C cast: modulo 256
    return np.minimum(wrapped, 63).astype(np.int16), (largest[:, 0] / np.float32(63)).astype(np.float16)


def _requantize(x: NDArray[Any], fitted: KBlocks, ends: tuple[int, int], name: str) -> KBlocks:
    """Round again, now to the grid of the rounded scales. A step of 0 keeps the codes of the search."""
    if not (np.isfinite(fitted.d).all() and np.isfinite(fitted.dmin).all()):
        raise ValueError(f"the scales of {name} must fit float16, got inf")
    n, subs = fitted.scales.shape
    step = fitted.step[:, :, None]
    ratio = (x.reshape(n, subs, -1) + fitted.low[:, :, None]) / step
    codes = np.clip(nearest_int(ratio), *ends) + fitted.offset
    codes = np.where(step == 0, fitted.codes.reshape(codes.shape), codes).astype(np.uint8)
    return KBlocks(codes.reshape(n, SUPER_BLOCK), fitted.scales, fitted.mins, fitted.d, fitted.dmin, fitted.offset)


def _checked(blocks: NDArray[Any], name: str) -> NDArray[Any]:
    if blocks.ndim != 2 or blocks.shape[1] != SUPER_BLOCK or not len(blocks):
        raise ValueError(f"blocks of {name} must have shape (n, 256), got shape={blocks.shape}")
    x = np.asarray(blocks, np.float32)
    if not np.isfinite(x).all():
        raise ValueError(f"weights must be finite to be quantized to {name}, got nan or inf")
    return x
