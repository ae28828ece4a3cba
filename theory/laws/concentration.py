"""T9: an update on fewer weights, at the same length, survives less noisily."""

from __future__ import annotations

import math

from unforgotten.theory.claims import claim
from unforgotten.theory.laws.energy import gated_energy
from unforgotten.theory.laws.gating import checked_step


@claim("T9", kind="law", source="T8 at equal |delta|_2")
def concentrated_cosine(rms: float, share: float, step: float) -> float:
    """cos(rho) = |delta|_2 / sqrt(N rho E[D^2]), |delta_i| = rms / sqrt(rho) on a share rho: ~ rho^(-1/4) below a step.

    The power law holds while rms / sqrt(rho) <= step, that is down to rho* = (rms / step)^2, where the cosine has
    reached 1 (every moved weight moves by one whole step). Below rho* it oscillates between 1 and sqrt(8/9): at
    |delta| = (n + phi) step, cos^2 = (n + phi)^2 / (n^2 + (2n + 1) phi), least 8/9 at n = 1, phi = 1/3.

    Args:
        rms: |delta|_2 / sqrt(N) > 0, over all weights.
        share: rho in (0, 1].
        step: Delta > 0.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not (math.isfinite(rms) and rms > 0):
        raise ValueError(f"rms must be positive and finite, got rms={rms!r}")
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got share={share!r}")
    size = rms / math.sqrt(share)
    return size / math.sqrt(float(gated_energy(size, checked_step(step))))


def needed_share(rms: float, cosine: float, step: float) -> float:
    """Invert T9's power law: the largest share whose cosine is `cosine`, rho = min(1, (rms / step)^2 / cosine^4).

    Raises:
        ValueError: an argument is out of its range.
    """
    if not 0 < cosine <= 1:
        raise ValueError(f"cosine must be in (0, 1], got cosine={cosine!r}")
    if not (math.isfinite(rms) and rms > 0):
        raise ValueError(f"rms must be positive and finite, got rms={rms!r}")
    return min(1.0, (rms / checked_step(step)) ** 2 / cosine**4)
