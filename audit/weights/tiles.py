"""Blocks that are tiles of rows and columns, laid out one after another so that the kernel can measure them.

A piece measures the bands of tiles that begin in it: whole rows, so that `flat.layout_of` can say where they begin. Edges
are filled with zeros before and after the update, which no flip, no sum and no place counts.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.kernel.rules import Extremes
from unforgotten.audit.kernel.stored_weights import Weights, extremes
from unforgotten.audit.sources.flat import BlockLayout, Piece
from unforgotten.theory.formats.tiles import matrices_of, to_tiles

Array = NDArray[Any]


class TileBlocks:
    """Tiles of a span of whole bands, as blocks of neighbours; what it has is called as in `piece_blocks.PieceBlocks`."""

    def __init__(self, pair: tuple[Array, Array], span: Piece, shape: tuple[int, ...], tile: tuple[int, int]) -> None:
        """Lay out tiles.

        Args:
            pair: weights of the span before and after, flat, float32.
            span: whole bands of the tensor, which may be of several matrices.
            shape: shape of the tensor.
            tile: rows and columns of a tile.
        """
        self._size = tile[0] * tile[1]
        before, after = (_laid_out(w, span, shape, tile) for w in pair)
        self.float32 = before, after

    @property
    def layout(self) -> BlockLayout:
        """One block after another."""
        return BlockLayout(self._size, max(self.span.stop, self._size))

    @property
    def span(self) -> Piece:
        """The tiles, from 0 on."""
        return Piece(0, self.float32[0].size)

    @cached_property
    def ends(self) -> Array:
        """Where the tiles end, int64."""
        return np.arange(1, self.span.stop // self._size + 1, dtype=np.int64) * self._size

    @property
    def stored(self) -> tuple[Array, Array]:
        """The weights before and after as the kernels read them."""
        return self.float32

    @cached_property
    def extremes(self) -> tuple[Extremes, Extremes]:
        """Extremes of the tiles before and after."""
        before, after = (extremes(Weights(w), slice(None), self.ends, {"absmax"}) for w in self.float32)
        return before, after


def _laid_out(w: Array, span: Piece, shape: tuple[int, ...], tile: tuple[int, int]) -> Array:
    """Return the tiles of a span one after another, flat; matrices are cut apart first, as a tile is of one alone."""
    _, rows, columns = matrices_of(shape)
    parts: list[Array] = []
    at = span.start
    while at < span.stop:
        stop = min(span.stop, (at // (rows * columns) + 1) * rows * columns)
        matrix = w[at - span.start : stop - span.start].reshape(-1, columns)
        parts.append(to_tiles(matrix, tile).reshape(-1))
        at = stop
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.float32), *parts])
