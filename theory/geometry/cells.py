"""T1: the cell of a code, and where in its cell a weight lies, in code units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.claims import claim
from unforgotten.theory.formats.names import Format


@dataclass(frozen=True)
class Cells:
    """The cells of a format on one grid, in code units, float64 (K,).

    An end cell is closed by the largest magnitude that the grid can hold; a weight that leaves the cell through
    that side keeps its code, because it is clipped.
    """

    lower: NDArray[Any]
    upper: NDArray[Any]

    @property
    def width(self) -> NDArray[Any]:
        """Widths (K,), > 0 but for a level that no weight can reach."""
        return self.upper - self.lower


@claim("T1", kind="exact", source="nearest-level rounding; bitsandbytes 0.50.2 for the codebooks")
def cells(fmt: Format) -> Cells:
    """{v : code(v) = k} is an interval between neighbouring thresholds, in code units and up to its end points."""
    thresholds = fmt.thresholds.astype(np.float64)
    low, high = fmt.reach
    return Cells(
        lower=np.concatenate([[min(low, thresholds[0])], thresholds]),
        upper=np.concatenate([thresholds, [max(high, thresholds[-1])]]),
    )


def position(v: NDArray[Any], codes: NDArray[Any], fmt: Format) -> NDArray[Any]:
    """Tell where `v` lies in its cell: 0 at the lower end, 1 at the upper. NaN in a cell of no width.

    Args:
        v: weights in code units, float64, any shape.
        codes: the codes of `v`, same shape.
        fmt: the format.
    """
    cell = cells(fmt)
    width = np.where(cell.width > 0, cell.width, np.nan)
    return (v - cell.lower[codes]) / width[codes]
