"""A tensor in pieces of bounded memory, whatever its shape and its size, that no format's block crosses unseen.

A piece is a range of the flattened tensor. Where pieces begin depends on the shape alone, so whatever is summed by
pieces is the same for every number of threads, and however many pieces are read at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.theory.formats.names import Format
from unforgotten.theory.formats.tiles import matrices_of

PIECE_WEIGHTS = 1 << 21


class Piece(NamedTuple):
    """Weights start … stop - 1 of the flattened tensor."""

    start: int
    stop: int


def pieces(shape: tuple[int, ...], most: int = PIECE_WEIGHTS) -> Iterator[Piece]:
    """Yield whole rows as far as `most` weights hold them, else parts of one row; together the tensor, in order."""
    total = math.prod(shape)
    if not total:
        return
    columns = shape[-1]
    if columns <= most:
        step = columns * (most // columns)
        for start in range(0, total, step):
            yield Piece(start, min(start + step, total))
        return
    for row in range(0, total, columns):
        for start in range(row, row + columns, most):
            yield Piece(start, min(start + most, row + columns))


class BlockLayout(NamedTuple):
    """How a format cuts a tensor into blocks: `size` weights from each start of a `line` on; a line's last may be cut.

    Attributes:
        size: weights of a block.
        line: weights of a line: a row, or the whole tensor where that makes no difference.
        tiled: whether a block is a band of rows, to be cut into tiles: it is read whole, however wide it is.
    """

    size: int
    line: int
    tiled: bool = False

    def first_from(self, at: int) -> int:
        """Return the start of the first block that starts at weight `at` or after it."""
        line, offset = divmod(at, self.line)
        return min(line * self.line + -(-offset // self.size) * self.size, (line + 1) * self.line)

    def index_of(self, at: int) -> int:
        """Return the number of the block that holds weight `at`."""
        line, offset = divmod(at, self.line)
        return line * -(-self.line // self.size) + offset // self.size

    def ends(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the ends of the blocks in start … stop - 1, counted from `start`; the last is that of the range."""
        first, last = start // self.line, -(-stop // self.line)
        if last - first == 1:
            origin = first * self.line
            begin = origin + (start - origin) // self.size * self.size + self.size
            inner = np.arange(begin, stop, self.size)
        else:
            within = np.append(np.arange(self.size, self.line, self.size), self.line)
            every = (np.arange(first, last)[:, None] * self.line + within).reshape(-1)
            inner = every[(every > start) & (every < stop)]
        return np.append(inner, stop).astype(np.int64) - start


def layout_of(fmt: Format, shape: tuple[int, ...]) -> BlockLayout:
    """Return the blocks of a format in a tensor of that shape; of tiles the bands of rows that hold them."""
    total = math.prod(shape)
    if fmt.tile is not None:
        _, rows, columns = matrices_of(shape)
        size, line = min(fmt.tile[0], rows) * columns, rows * columns
        return BlockLayout(size, total if line % size == 0 else line, tiled=True)
    line = total if fmt.block in ("tensor", "flat") else shape[-1]
    size = min(fmt.block_size or line, line)
    return BlockLayout(size, total if line % size == 0 else line)


def tensors_equal(one: Checkpoint, name: str, two: Checkpoint, other: str) -> bool:
    """Return whether two tensors of one shape hold equal values, whatever their dtypes; in bounded memory."""
    shape = one.tensors[name].shape
    if not shape:
        return bool(np.array_equal(one.read(name), two.read(other)))
    return all(np.array_equal(one.read_flat(name, *p), two.read_flat(other, *p)) for p in pieces(shape))


def read_float32(checkpoint: Checkpoint, name: str) -> NDArray[np.float32]:
    """Read a whole tensor as float32, with one piece of it beside it in memory."""
    shape = checkpoint.tensors[name].shape
    if not shape:
        return checkpoint.read(name).astype(np.float32)
    found = np.empty(shape, np.float32)
    flat = found.reshape(-1)
    for start, stop in pieces(shape):
        flat[start:stop] = checkpoint.read_flat(name, start, stop)
    return found
