"""What a run of rows shows in one format, on the target's grid: codes, places in cells, and what crosses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.findings.probe import Run
from unforgotten.theory.formats.names import Format
from unforgotten.theory.formats.reference import code_units, encode, fit_grid, to_blocks
from unforgotten.theory.laws.flips import flip_probability


@dataclass(frozen=True)
class CellView:
    """The weights of a run, flat and without padding, (n,).

    Attributes:
        w: weights before, float64.
        delta: change of the weights.
        v: code units before.
        step: size of one code unit in the units of the weight, below 0 where the scale is; inf in a block of zeros.
        codes, codes_new: codes before and after, on the grid of `w`.
        near: distance of the code's level from that of weight 0, in code units.
        stay: probability under U that the code stays.
    """

    w: NDArray[Any]
    delta: NDArray[Any]
    v: NDArray[Any]
    step: NDArray[Any]
    codes: NDArray[Any]
    codes_new: NDArray[Any]
    near: NDArray[Any]
    stay: NDArray[Any]


def cells_of(run: Run, fmt: Format) -> CellView:
    """Encode both sides on the grid of the weights before.

    Raises:
        ValueError: the format cannot take the rows.
    """
    before, after = to_blocks(run.w, fmt), to_blocks(run.w_new, fmt)
    real = to_blocks(np.ones(run.w.shape, np.float32), fmt) > 0
    grid = fit_grid(before, fmt)
    codes, codes_new = (encode(x, grid, fmt).astype(np.int64) for x in (before, after))
    v, v_new = (code_units(x, grid, fmt).astype(np.float64) for x in (before, after))
    levels, nothing = np.asarray(fmt.levels, np.float64), np.zeros_like(before)
    zero_code = encode(nothing, grid, fmt).astype(np.int64)
    largest = np.abs(before).max(axis=1, keepdims=True)
    reach = code_units(np.broadcast_to(largest, before.shape).copy(), grid, fmt) - code_units(nothing, grid, fmt)
    with np.errstate(divide="ignore", invalid="ignore"):
        step = np.where(reach != 0, largest / reach.astype(np.float64), np.inf)
    w, w_new = before.astype(np.float64), after.astype(np.float64)
    stay = 1 - flip_probability(v_new - v, codes, fmt)
    return CellView(
        w[real],
        (w_new - w)[real],
        v[real],
        step[real],
        codes[real],
        codes_new[real],
        np.abs(levels[codes] - levels[zero_code])[real],
        stay[real],
    )
