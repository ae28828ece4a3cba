"""The structures that the kernel of sixteen weights reads and fills, as Python, compiled code and `tile` pass them on.

Each is listed once, here or where it is made: `vector_rules.VectorRule` and `entries.BlockEntries`. In Python the fields
are arrays and numbers. Numba takes them as they are, and what is None says at compile time which instructions there are.
Where instructions are emitted (`tile.emit_tile`) the same class holds what stands for the fields there: a pointer for
each array, a value for each number, None for None.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.extending import register_jitable

from unforgotten.audit.kernel.entries import BlockEntries
from unforgotten.audit.kernel.slots import ALL_COUNTS, ALL_SUMS, MOST_BLOCKS, TILE
from unforgotten.audit.kernel.vector_rules import VectorRule


class Pair(NamedTuple):
    """The weights of some whole blocks before and after, uint16 (bfloat16) or float32."""

    before: Any
    after: Any


class Sums(NamedTuple):
    """What is added up: sums in eight lanes (float64) and counts (int64), by grid and slot, see `slots`.

    Where a block has the same grid before and after, the fixed grid is the adaptive one, and only that row is there.

    Attributes:
        same_grid: (1, ALL_SUMS, 8), sums of the blocks that have the same grid before and after.
        same_grid_counts: (1, ALL_COUNTS), their counts.
        new_grid: (2, ALL_SUMS, 8), sums of the blocks that have another grid after.
        new_grid_counts: (2, ALL_COUNTS), their counts.
    """

    same_grid: Any
    same_grid_counts: Any
    new_grid: Any
    new_grid_counts: Any


class Scratch(NamedTuple):
    """Memory that passes over a tile leave to each other.

    Attributes:
        numbers: uint32 (MOST_BLOCKS,), the blocks of the tile: from the front those that have the same grid before and
            after, from the back those that have another.
        gains: float32 (MOST_BLOCKS,), the gain before of each of those.
        reciprocals: float64 (MOST_BLOCKS,), the reciprocal before of each, where the format divides.
        codes: int32 (TILE,), the codes before; float32 levels where those are integers.
        places: uint16 (2, TILE), `binade << BIN_BITS | bin` of each weight; without the binade where there is no census.
            Tiles take turns: while one row is filled the other is counted.
        recheck: int64 (MOST_BLOCKS + 1,), groups of sixteen in which float32 cannot tell the bin of a weight.
        may_flip: int64 (MOST_BLOCKS + 1,), groups of sixteen in which a code may flip.
        tallies: uint32, how often there was each place.
    """

    numbers: Any
    gains: Any
    reciprocals: Any
    codes: Any
    places: Any
    recheck: Any
    may_flip: Any
    tallies: Any


class Tile(NamedTuple):
    """Which weights a tile is, in numbers.

    Attributes:
        begin: its first weight.
        groups: groups of sixteen that each block has in the tile.
        size: weights of a block.
        same_grid: how many of its blocks have the same grid before and after.
        new_grid: how many have another.
        turn: the row of `Scratch.places` that is filled.
    """

    begin: Any
    groups: Any
    size: Any
    same_grid: Any
    new_grid: Any
    turn: Any


class Given(NamedTuple):
    """All that the passes over a tile are given."""

    pair: Pair
    rule: VectorRule
    entries: BlockEntries
    sums: Sums
    scratch: Scratch
    tile: Tile


class Known(NamedTuple):
    """What is known at compile time, beside which fields of `structures.Given` are None.

    Attributes:
        simd: one of `simd.VECTOR_PATHS`.
        is_bfloat16: whether weights are the bits of bfloat16; else they are float32.
        takes_census: whether to count what needs no format.
        unrolled: how many groups of sixteen a block has, where there is no loop over them; else 0.
    """

    simd: str
    is_bfloat16: bool
    takes_census: bool
    unrolled: int


def no_sums() -> Sums:
    """Return sums that nothing is added to yet."""
    return Sums(
        np.zeros((1, ALL_SUMS, 8)),
        np.zeros((1, ALL_COUNTS), np.int64),
        np.zeros((2, ALL_SUMS, 8)),
        np.zeros((2, ALL_COUNTS), np.int64),
    )


@register_jitable
def new_scratch(tallies: Any) -> Scratch:
    """Return scratch memory of its own, but for the tallies."""
    return Scratch(
        np.empty(MOST_BLOCKS, np.uint32),
        np.empty(MOST_BLOCKS, np.float32),
        np.empty(MOST_BLOCKS, np.float64),
        np.empty(TILE, np.int32),
        np.empty((2, TILE), np.uint16),
        np.empty(MOST_BLOCKS + 1, np.int64),
        np.empty(MOST_BLOCKS + 1, np.int64),
        tallies,
    )
