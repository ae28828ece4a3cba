"""T9: an update on fewer weights, at the same length, survives less noisily; less so where the grid follows."""

from __future__ import annotations

import math

import numpy as np

from unforgotten.theory.claims import claim
from unforgotten.theory.formats.names import Format
from unforgotten.theory.laws.absmax import AbsmaxLaw
from unforgotten.theory.laws.boundary import shape_of
from unforgotten.theory.laws.densities import Density
from unforgotten.theory.laws.energy import energy_density, gated_energy
from unforgotten.theory.laws.gating import checked_step


@claim("T9", kind="law", source="T8 at equal |delta|_2")
def concentrated_cosine(rms: float, share: float, step: float, followers: float = 0.0) -> float:
    """cos(rho) = |delta|_2 / sqrt(N rho E[D^2] (1 + (1 - rho) x)), |delta_i| = rms / sqrt(rho) on a share rho.

    x = 0 on a fixed grid, `follower_ratio` on an adaptive one: there an update of the entry that sets the absmax moves
    the scale, and unmoved weights cross thresholds. To first order in |delta_i| / step: the scale follows an entry
    inward only until another overtakes it, so at a tenth of a step x is some 10 % too large, and the cosine 2 % too low.

    On a fixed grid cos ~ rho^(-1/4). The power law holds while rms / sqrt(rho) <= step, that is down to rho* = (rms / step)^2, where the cosine has
    reached 1 (every moved weight moves by one whole step). Below rho* it oscillates between 1 and sqrt(8/9): at
    |delta| = (n + phi) step, cos^2 = (n + phi)^2 / (n^2 + (2n + 1) phi), least 8/9 at n = 1, phi = 1/3.

    Args:
        rms: |delta|_2 / sqrt(N) > 0, over all weights.
        share: rho in (0, 1].
        step: Delta > 0; on a non-uniform grid the effective step.
        followers: x >= 0.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not (math.isfinite(followers) and followers >= 0):
        raise ValueError(f"followers must be finite and not negative, got followers={followers!r}")
    if not (math.isfinite(rms) and rms > 0):
        raise ValueError(f"rms must be positive and finite, got rms={rms!r}")
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got share={share!r}")
    size = rms / math.sqrt(share)
    energy = float(gated_energy(size, checked_step(step))) * (1 + (1 - share) * followers)
    return size / math.sqrt(energy)


@claim("T9", kind="first-order", source="derived here: a change of scale shifts w by w da / a, in units of the scale")
def follower_ratio(fmt: Format, density: Density, law: AbsmaxLaw) -> float:
    """E[sum_k Delta_k^2 |t_k| f_a(t_k)] / E[sum_k Delta_k^2 f_a(t_k)], t_k over the absmax; near E|w| / E[absmax].

    The entry that sets the absmax a moves with probability rho, by +-d, and the scale by a share d / a of itself. An
    unmoved weight near threshold t_k a is then shifted by |t_k| d against it, where a moved one is by d: its squared
    survivor is Delta_k^2 |t_k| d f in place of Delta_k^2 d f. Moved weights are shifted by |1 -+ t_k| d, which is d in
    the mean, as signs are independent. On a fine uniform grid the sums are integrals, Delta_k ~ a, and x is
    (B E|w| / E[absmax] - 1) / (B - 1), the mean of the others; on NF4 it is a quarter more for Gaussian weights.

    Args:
        fmt: an absmax format.
        density: F, the law of the weights.
        law: law of the absmax of blocks.
    """
    shape = shape_of(fmt)
    moved = [energy_density(fmt, density, a) for a in law.values.tolist()]
    places = np.abs(shape.thresholds)
    squares = np.diff(shape.levels) ** 2
    means = []
    for a in law.values.tolist():
        heights = squares * density.pdf(a * shape.thresholds)
        total = float(heights.sum())
        means.append(float(heights @ places) / total if total else 0.0)
    weights = law.weights * np.array(moved)
    return float(weights @ np.array(means) / weights.sum())


def needed_share(rms: float, cosine: float, step: float) -> float:
    """Invert T9's power law on a fixed grid: the largest share with the cosine, min(1, (rms / step)^2 / cosine^4).

    Raises:
        ValueError: an argument is out of its range.
    """
    if not 0 < cosine <= 1:
        raise ValueError(f"cosine must be in (0, 1], got cosine={cosine!r}")
    if not (math.isfinite(rms) and rms > 0):
        raise ValueError(f"rms must be positive and finite, got rms={rms!r}")
    return min(1.0, (rms / checked_step(step)) ** 2 / cosine**4)
