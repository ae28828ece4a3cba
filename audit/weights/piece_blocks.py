"""The blocks of one layout in a piece: which they are, their weights, and their extremes."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.kernel.entries import BlockEntries
from unforgotten.audit.kernel.lanes import LANES
from unforgotten.audit.kernel.rules import Extremes
from unforgotten.audit.kernel.stored_weights import Weights, extremes
from unforgotten.audit.sources.flat import PIECE_WEIGHTS, BlockLayout, Piece, layout_of
from unforgotten.audit.weights.task import TensorTask

Array = NDArray[Any]


def span_of(layout: BlockLayout, piece: Piece) -> Piece:
    """Return the blocks that begin in a piece, whole; where blocks but bands are wider than any piece, the piece."""
    if layout.size > PIECE_WEIGHTS and not layout.tiled:
        return piece
    return Piece(layout.first_from(piece.start), layout.first_from(piece.stop))


class PieceBlocks:
    """The blocks of one layout in a piece: where they end, their weights, and their extremes."""

    def __init__(
        self, task: TensorTask, layout: BlockLayout, span: Piece, pair: tuple[Weights, Weights], piece: Piece
    ) -> None:
        self.task, self.layout, self.span, self._pair = task, layout, span, pair
        self.is_piece = span == piece
        self.entries: BlockEntries | None = None
        """By the bits of largest magnitudes, once they are known."""
        self._at = slice(span.start - piece.start, max(span.stop, span.start) - piece.start)

    @cached_property
    def ends(self) -> Array:
        """Where the blocks end, int64, counted from the start of the span."""
        empty = self.span.start >= self.span.stop
        return np.empty(0, np.int64) if empty else self.layout.ends(*self.span)

    @property
    def stored(self) -> tuple[Array, Array]:
        """The weights of the blocks before and after as the kernels read them."""
        return self._pair[0].stored[self._at], self._pair[1].stored[self._at]

    @property
    def float32(self) -> tuple[Array, Array]:
        """The weights of the blocks before and after as float32 numbers."""
        return self._pair[0].float32[self._at], self._pair[1].float32[self._at]

    @cached_property
    def extremes(self) -> tuple[Extremes, Extremes]:
        """Extremes of the blocks before and after."""
        if self.layout.size <= PIECE_WEIGHTS:
            seen = {f.statistic for f in self.task.formats if layout_of(f, self.task.shape) == self.layout}
            before, after = (extremes(weights, self._at, self.ends, seen) for weights in self._pair)
            return before, after
        first, last = (self.layout.index_of(at) for at in (self.span.start, self.span.stop - 1))
        before, after = (
            Extremes(e.low[first : last + 1], e.high[first : last + 1], e.low_first[first : last + 1])
            for e in self.task.tensor_extremes[self.layout]
        )
        return before, after

    @property
    def whole_groups(self) -> int:
        """How many blocks there are before a last, partial one; 0 unless they are regular, and multiples of LANES."""
        size, weights = self.layout.size, self.span.stop - self.span.start
        one_line = self.layout.line == math.prod(self.task.shape)
        if not one_line or size % LANES or size > PIECE_WEIGHTS:
            return 0
        return max(weights, 0) // size

    @property
    def is_whole(self) -> bool:
        """Whether all blocks are `whole_groups`, and there are any."""
        return self.whole_groups * self.layout.size == self.span.stop - self.span.start > 0
