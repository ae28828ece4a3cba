"""Tiles of rows and columns that share a scale, laid out one to a row: the blocks of FP8 by 128 x 128.

Takes a tensor and the size of a tile; gives blocks (n_tiles, rows * columns), filled with zeros where a tile is cut by an
edge, and undoes that. Tiles begin anew in each matrix of a tensor of more than two axes; one axis is a matrix of one row.

>>> to_tiles(np.arange(8.0).reshape(2, 4), (2, 2)).tolist()
[[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def matrices_of(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return how many matrices a tensor is cut into, and their rows and columns."""
    rows, columns = (1, *shape)[-2:]
    return math.prod(shape[:-2]), rows, columns


def to_tiles(w: Array, tile: tuple[int, int]) -> Array:
    """Return the tiles of a tensor of one axis or more, in the order of the matrices, then of rows, then of columns."""
    count, rows, columns = matrices_of(w.shape)
    high, wide = tile
    padded = np.pad(w.reshape(count, rows, columns), ((0, 0), (0, -rows % high), (0, -columns % wide)))
    cut = padded.reshape(count, -(-rows // high), high, -(-columns // wide), wide)
    return cut.swapaxes(2, 3).reshape(-1, high * wide)


def from_tiles(tiles: Array, shape: tuple[int, ...], tile: tuple[int, int]) -> Array:
    """Undo `to_tiles`: drop the zeros at the edges and restore `shape`."""
    count, rows, columns = matrices_of(shape)
    high, wide = tile
    down, across = -(-rows // high), -(-columns // wide)
    joined = tiles.reshape(count, down, across, high, wide).swapaxes(2, 3).reshape(count, down * high, across * wide)
    return joined[:, :rows, :columns].reshape(shape)
