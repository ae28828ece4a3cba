"""The shortest move of each weight that changes its code in a format, and no code or scale but that.

found = crossings(w, rising, format_named("int4-g64"), torch.float32)
w[chosen] = found.weights[chosen]  # whichever are chosen: Q moves by found.changes there, and nowhere else
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unforgotten.theory.formats.names import Format
from unforgotten.theory.formats.reference import decode, encode, fit_grid, from_blocks, to_blocks
from unforgotten.theory.geometry.preimages import LIMITS, weight_cells


class Crossings(NamedTuple):
    """Moves of the weights of a tensor, float32 in its shape.

    Attributes:
        weights: first number of the arm's dtype beyond the cell's edge; the weight itself where there is no move.
        changes: change of the dequantized value; 0 where there is no move.
    """

    weights: Tensor
    changes: Tensor


def crossings(w: Tensor, rising: Tensor, fmt: Format, dtype: torch.dtype) -> Crossings:
    """Return for each weight the first number beyond the edge of its cell on one side.

    A weight has no move if its cell has no neighbour on that side; if the move would change the scale of its block; if the next
    number of the dtype lies beyond the neighbour too; or if the neighbour has the same value, as the two zeros of fp4 have.

    Args:
        w: weights, (rows, columns) or a stack of such matrices, that the dtype holds.
        rising: True where the weight is to rise, boolean in the shape of w.
        fmt: format that rounds to nearest.
        dtype: dtype of the stored weights.

    Raises:
        ValueError: the format is dithered, or its scales come from a search.
    """
    if fmt.statistic not in LIMITS:
        known = ", ".join(LIMITS)
        raise ValueError(f"format must have a scale of one of {known}, got {fmt.name} with {fmt.statistic!r}")
    if w.ndim == 3:
        parts = [crossings(matrix, up, fmt, dtype) for matrix, up in zip(w, rising, strict=True)]
        return Crossings(*(torch.stack(part) for part in zip(*parts, strict=True)))
    numbers = w.detach().float().numpy()
    blocks, up = to_blocks(numbers, fmt), to_blocks(rising.float().numpy(), fmt) > 0
    count = numbers.size if fmt.block == "flat" else None
    partial = count is not None and count % blocks.shape[1] != 0
    grid = fit_grid(blocks, fmt, count=count)
    codes = encode(blocks, grid, fmt, count=count).astype(np.int64)
    cell, limit = weight_cells(codes, grid, fmt, partial=partial), LIMITS[fmt.statistic](blocks, fmt, partial)
    moved = _beyond(np.where(up, cell.upper, cell.lower), up, dtype)
    stays = np.isfinite(moved) & (limit.lower <= moved) & (moved <= limit.upper)
    moved = np.where(stays, moved, blocks)
    next_codes = encode(moved, grid, fmt, count=count).astype(np.int64)
    before, after = (decode(k, grid, fmt) for k in (codes, next_codes))
    crossed = stays & (np.abs(next_codes - codes) == 1) & (after != before)
    changes = np.where(crossed, after - before, np.float32(0))
    shape = numbers.shape
    found = (from_blocks(x, shape, fmt) for x in (np.where(crossed, moved, blocks), changes))
    return Crossings(*(torch.from_numpy(np.ascontiguousarray(x, np.float32)) for x in found))


def _beyond(edge: NDArray[Any], up: NDArray[Any], dtype: torch.dtype) -> NDArray[np.float32]:
    """Return the first number of a dtype above an edge, or below it."""
    with np.errstate(over="ignore"):
        past = torch.from_numpy(np.nextafter(edge, np.where(up, np.float32(np.inf), np.float32(-np.inf))))
    toward = torch.where(torch.from_numpy(up), torch.inf, -torch.inf).to(dtype)
    near = past.to(dtype)
    short = torch.where(torch.from_numpy(up), near.float() < past, near.float() > past)
    return torch.where(short, torch.nextafter(near, toward), near).float().numpy()
