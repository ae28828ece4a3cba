"""The grids of k-quants as the kernel applies them: a step and a minimum for every sub-block, found by compiled searches.

In: whole super-blocks one after another, float32, and a format of them. Out: `BlockGrids` of their sub-blocks, as
`theory.formats.grids` has them for each weight.

>>> search_grids(np.linspace(-1, 1, 256, dtype=np.float32), format_named("q4_k")).scale.shape
(8,)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.kernel import searches
from unforgotten.audit.kernel.rules import BlockGrids
from unforgotten.theory.formats.kquants import OF_Q4_K, OF_Q5_K, SMALLEST, Candidates, nearest_int
from unforgotten.theory.formats.names import Format

Array = NDArray[Any]
ONE, ZERO = np.float32(1), np.float32(0)


class Stored(NamedTuple):
    """Scales and minima of sub-blocks as files have them: whole numbers, (n, sub-blocks), and their float16 units, (n,)."""

    scales: Array
    mins: Array
    d: Array
    dmin: Array


class SuperBlocks(NamedTuple):
    """How scales of super-blocks are found.

    Attributes:
        size: weights of a sub-block.
        search: function that fills in scales and minima of sub-blocks, given their weights.
        store: function that rounds them.
    """

    size: int
    search: Callable[[Array, Array, Array], None]
    store: Callable[[Array, Array], Stored]


@np.errstate(all="ignore")
def store_q3_k(scale: Array, low: Array) -> Stored:
    """Round scales, float32 (16 n,), to 6 bits with a sign, as `kquants.q3_k` does.

    Raises:
        ValueError: a scale is not finite, or its unit overflows float16.
    """
    own = scale.reshape(-1, 16)
    if not np.isfinite(own).all():  # where ggml takes a nan for the scale 0
        raise ValueError("the scales of Q3_K must fit float16, got inf")
    largest = np.take_along_axis(own, np.abs(own).argmax(axis=1)[:, None], axis=1)
    empty = largest == 0
    inverse = np.float32(-32) / np.where(empty, ONE, largest)
    scales = np.where(empty, -32, np.clip(nearest_int(inverse * own), -32, 31)).astype(np.int16)
    d = np.where(empty, ZERO, ONE / inverse).astype(np.float16)[:, 0]
    return _finite(Stored(scales, np.zeros_like(scales), d, np.zeros_like(d)), "Q3_K")


@np.errstate(all="ignore")
def store_q6_k(scale: Array, low: Array) -> Stored:
    """Round scales, float32 (16 n,), to 8 bits with a sign, as `kquants.q6_k` does; errors as of `store_q3_k`."""
    own = scale.reshape(-1, 16)
    largest = np.take_along_axis(own, np.abs(own).argmax(axis=1)[:, None], axis=1)
    empty = np.abs(largest) < SMALLEST
    inverse = np.float32(-128) / np.where(empty, ONE, largest)
    scales = np.where(empty, 0, np.minimum(127, nearest_int(inverse * own))).astype(np.int16)
    d = np.where(empty, ZERO, ONE / inverse).astype(np.float16)[:, 0]
    return _finite(Stored(scales, np.zeros_like(scales), d, np.zeros_like(d)), "Q6_K")


@np.errstate(all="ignore")
def store_affine(scale: Array, low: Array, name: str) -> Stored:
    """Round scales and minima, float32 (8 n,), to 6 bits, as `kquants.q4_k` does; errors as of `store_q3_k`."""
    (scales, d), (mins, dmin) = _six_bits(scale.reshape(-1, 8)), _six_bits(low.reshape(-1, 8))
    return _finite(Stored(scales, mins, d, dmin), name)


def _six_bits(x: Array) -> tuple[Array, Array]:
    largest = np.maximum(x.max(axis=1, keepdims=True), ZERO)
    inverse = np.where(largest > 0, np.float32(63) / largest, ZERO)
    wrapped = nearest_int(inverse * x).astype(np.uint8)  # a C cast: modulo 256
    return np.minimum(wrapped, 63).astype(np.int16), (largest[:, 0] / np.float32(63)).astype(np.float16)


def _finite(stored: Stored, name: str) -> Stored:
    if not (np.isfinite(stored.d).all() and np.isfinite(stored.dmin).all()):
        raise ValueError(f"the scales of {name} must fit float16, got inf")
    return stored


def _affine(candidates: Candidates, name: str) -> SuperBlocks:
    top, first, tried = np.float32(candidates.top), candidates.first, candidates.tried
    return SuperBlocks(
        searches.WIDE,
        lambda w, scale, low: searches.search_affine(w, top, first, tried, scale, low),
        lambda scale, low: store_affine(scale, low, name),
    )


def _signed(search: Callable[[Array, Array], None], store: Callable[[Array, Array], Stored]) -> SuperBlocks:
    return SuperBlocks(searches.NARROW, lambda w, scale, low: search(w, scale), store)


OF_STATISTIC: Mapping[str, SuperBlocks] = {
    "q3_k": _signed(searches.search_one_by_one, store_q3_k),
    "q4_k": _affine(OF_Q4_K, "Q4_K"),
    "q5_k": _affine(OF_Q5_K, "Q5_K"),
    "q6_k": _signed(searches.search_symmetric, store_q6_k),
}


def sub_block_ends(count: int, fmt: Format) -> Array:
    """Return where the sub-blocks of so many weights end, int64."""
    size = OF_STATISTIC[fmt.statistic].size
    return np.arange(size, count + size, size, dtype=np.int64)


def search_grids(weights: Array, fmt: Format) -> BlockGrids:
    """Return the parameters that a k-quant chooses for whole super-blocks, by sub-block.

    Raises:
        ValueError: a scale overflows float16.
    """
    own = OF_STATISTIC[fmt.statistic]
    scale, low = np.zeros((2, len(weights) // own.size), np.float32)
    own.search(weights, scale, low)
    stored = own.store(scale, low)
    step = _unfolded(stored.scales, stored.d)
    begin = -_unfolded(stored.mins, stored.dmin)
    usable, nothing = step != 0, np.zeros_like(step)
    factor = np.where(usable, step, np.float32(1))
    return BlockGrids(np.ones(len(step), bool), usable, factor, begin, nothing, step, nothing, begin)


def _unfolded(counts: Array, unit: Array) -> Array:
    """Return what whole numbers stand for, float32, one a sub-block."""
    return (unit.astype(np.float32)[:, None] * counts.astype(np.float32)).reshape(-1)
