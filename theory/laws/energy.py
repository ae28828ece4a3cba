"""T8: how large the survivor is, and how much of it points along the update."""

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
from unforgotten.theory.laws.gating import checked_step


@claim("T8", kind="law", source="second moment of T7's two-point law")
def gated_energy(delta: ArrayLike, step: float) -> NDArray[Any]:
    """E[D^2 | delta] = step^2 (n^2 + (2n + 1) phi), |delta| = (n + phi) step; step |delta| below one step.

    Args:
        delta: the update, any shape.
        step: Delta > 0.
    """
    size = np.abs(np.asarray(delta, np.float64)) / checked_step(step)
    whole = np.floor(size)
    return np.asarray(step**2 * (whole**2 + (2 * whole + 1) * (size - whole)))


@claim("T8", kind="law", source="T7 and T8 together, update below one step")
def expected_cosine(delta: NDArray[Any], step: float) -> float:
    """<D, delta> / (|D| |delta|) -> |delta|_2 / sqrt(sum_i E[D_i^2]); |delta|_2 / sqrt(Delta |delta|_1) below a step.

    A ratio of expectations: the cosine of one draw differs by O(1 / sqrt(flips)).

    Args:
        delta: the update, not all 0.
        step: Delta > 0; on a non-uniform grid the effective step.

    Raises:
        ValueError: the update is 0 everywhere.
    """
    energy = float(np.sum(gated_energy(delta, step)))
    if energy == 0:
        raise ValueError("delta must have one entry that is not 0, got none")
    return float(np.linalg.norm(np.asarray(delta, np.float64))) / math.sqrt(energy)


@claim("T8", kind="first-order", source="ratio of the Riemann sums of Delta_k^2 and Delta_k")
def effective_step(fmt: Format, density: Density, absmax: float) -> float:
    """Delta_eff = sum_k Delta_k^2 f(t_k) / sum_k Delta_k f(t_k): E[D^2] = gain Delta_eff |delta| for small delta."""
    shape = shape_of(fmt)
    steps = absmax * np.diff(shape.levels)
    heights = density.pdf(absmax * shape.thresholds)
    return float(steps**2 @ heights / (steps @ heights))


@claim("T8", kind="first-order", source="E[D^2 | delta] over |delta| as delta -> 0, on a fixed grid")
def energy_density(fmt: Format, density: Density, absmax: float) -> float:
    """sum_k Delta_k^2 f_a(t_k): the squared length that a small update gains per unit of |delta|."""
    shape = shape_of(fmt)
    steps = absmax * np.diff(shape.levels)
    heights = density.pdf(absmax * shape.thresholds) / magnitude_cdf(absmax, density)
    return float(steps**2 @ heights)
