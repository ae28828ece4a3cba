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
from unforgotten.theory.formats.kquants import (
    OF_Q4_K,
    OF_Q5_K,
    Candidates,
    Stored,
    store_affine,
    store_q3_k,
    store_q6_k,
)
from unforgotten.theory.formats.names import Format

Array = NDArray[Any]


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
    step, begin = stored.step.reshape(-1), -stored.low.reshape(-1)
    usable, nothing = step != 0, np.zeros_like(step)
    factor = np.where(usable, step, np.float32(1))
    return BlockGrids(np.ones(len(step), bool), usable, factor, begin, nothing, step, nothing, begin)
