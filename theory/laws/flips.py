"""T6: how likely an update changes a code."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.claims import claim
from unforgotten.theory.formats.names import Format
from unforgotten.theory.geometry.cells import cells


@claim("T6", kind="law", source="Widrow & Kollar 2008, ch. 4 (uniform-phase model)")
def flip_probability(shift: NDArray[Any], codes: NDArray[Any], fmt: Format) -> NDArray[Any]:
    """P[code changes] = min(|shift| / width of the cell, 1), 0 where the update leaves an end cell outward.

    Assumption U: the position of the weight in its cell is uniform and independent of the shift.

    Args:
        shift: the change of the weight in code units, `w'/scale' + zero' - w/scale - zero`; float64, any shape.
            On a fixed grid it is `delta / scale`; on an adaptive grid it holds the drift of the scale too.
        codes: the code of the weight before the update, same shape.
        fmt: the format.

    Returns:
        Probabilities, same shape.
    """
    width = cells(fmt).width
    probability = np.minimum(np.abs(shift) / np.where(width > 0, width, np.inf)[codes], 1.0)
    outward = ((codes == 0) & (shift < 0)) | ((codes == len(fmt.levels) - 1) & (shift > 0))
    return np.where(outward, 0.0, probability)
