"""T7: quantization passes an update in expectation, and all at once or not at all for one weight."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unforgotten.theory.claims import claim
from unforgotten.theory.formats.names import Format
from unforgotten.theory.laws.absmax import magnitude_cdf
from unforgotten.theory.laws.boundary import shape_of
from unforgotten.theory.laws.densities import Density


def checked_step(step: float) -> float:
    """Return the step if it is positive and finite.

    Raises:
        ValueError: it is not.
    """
    if not (math.isfinite(step) and step > 0):
        raise ValueError(f"step must be positive and finite, got step={step!r}")
    return step


@claim("T7", kind="law", source="Widrow & Kollar 2008, ch. 4 (uniform-phase model)")
def gated_mean(delta: ArrayLike, step: float) -> NDArray[Any]:
    """E[D | delta] = delta for w uniform in its cell of an unclipped uniform grid.

    With |delta| = (n + phi) step, |D| is n steps with probability 1 - phi and n + 1 with phi.

    Args:
        delta: the update, any shape.
        step: Delta > 0, in the same units.
    """
    size = np.abs(np.asarray(delta, np.float64)) / checked_step(step)
    whole = np.floor(size)
    return np.sign(delta) * step * (whole * (1 - (size - whole)) + (whole + 1) * (size - whole))


@claim("T7", kind="law", source="Widrow & Kollar 2008, ch. 4 (uniform-phase model)")
def gated_variance(delta: ArrayLike, step: float) -> NDArray[Any]:
    """Var[D | delta] = step^2 phi (1 - phi), phi = frac(|delta| / step); at most step^2 / 4."""
    size = np.abs(np.asarray(delta, np.float64)) / checked_step(step)
    phi = size - np.floor(size)
    return np.asarray(step**2 * phi * (1 - phi))


@claim("T7", kind="first-order", source="Riemann sum of the density over the grid")
def riemann_gain(fmt: Format, density: Density, absmax: float) -> float:
    """G = sum_k Delta_k f_a(t_k), the limit of E[D | delta] / delta as delta -> 0 on a fixed grid; near 1.

    Delta_k = l_k - l_{k-1}. The two ends of the reach lack half a cell each, and f_a is F's density over the mass of
    [-a, a]: for Gaussian weights at 4 bits the sum is within a few per cent of 1.
    """
    shape = shape_of(fmt)
    heights = density.pdf(absmax * shape.thresholds) / magnitude_cdf(absmax, density)
    return float(absmax * np.diff(shape.levels) @ heights)
