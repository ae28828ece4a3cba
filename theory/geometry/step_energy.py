"""T5 from what the gradients were: AdamW's step is at most the root of recent over whole energy of its weight.

Takes the gradients of weights, step by step; gives a bound of each step in units of lr, rounded up.

>>> steady = energy_ratio_upper_bound(np.ones(50))
>>> round(float(steady[-1]), 6)
1.0
>>> turned = energy_ratio_upper_bound(np.concatenate([np.full(500, 0.01), np.ones(10)]))
>>> round(float(turned[-1]), 1)
5.1
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.claims import claim
from unforgotten.theory.geometry.adamw import U64, check_betas

SAFE = 2.0**-500  # of the largest gradient; smaller ones count as this above the line, and as 0 below it
NORMAL = 2.0**-1021  # a smaller mean would be rounded by more than its last digit, and counts as 0 below the line
LOST = 2.0**-1070  # more than a product below the normal range loses


@claim("T5", kind="exact", source="Jensen's inequality for the weights of the two averages")
def energy_ratio_upper_bound(gradients: NDArray[Any], beta1: float = 0.9, beta2: float = 0.999) -> NDArray[Any]:
    """|step t|^2 <= lr^2 EMA_b1(g^2) / EMA_b2(g^2), both bias-corrected: recent energy over the energy of the run.

    m^_t is a mean of g_1 … g_t with weights a_i that add up to 1, so m^_t^2 <= sum a_i g_i^2; and v^_t = sum b_i g_i^2.
    A step exceeds lr only where the weight's energy in the last 1/(1-b1) steps exceeds that of its last 1/(1-b2): where
    its gradients grow, or, at equal norm of the whole gradient, where the direction turns toward it. Attained by equal
    gradients. In real arithmetic; any eps >= 0 and no weight decay.

    Args:
        gradients: gradients of each step, in the order of the steps, finite, (steps, ...).
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in (0, 1).

    Returns:
        The bound of every step in units of lr, rounded up, (steps, ...); 0 before the first gradient that is not 0, and
        inf while all are below 2^-500 of the largest of any weight.

    Raises:
        ValueError: there is no step, a gradient is not finite, or a decay is out of its range.
    """
    check_betas(beta1, beta2)
    g = np.asarray(gradients, np.float64)
    if g.ndim < 1 or not g.size or not np.isfinite(g).all():
        raise ValueError(f"gradients must be finite, (steps, ...), got shape={g.shape}")
    largest = float(np.abs(g).max())
    scaled = np.abs(g / largest) if largest else np.zeros(g.shape)
    recent, whole = np.zeros(g.shape[1:]), np.zeros(g.shape[1:])
    found = np.zeros(g.shape)
    for t, row in enumerate(scaled):
        seen = (row > 0) | (recent > 0)
        recent = beta1 * recent + (1 - beta1) * np.maximum(row, SAFE * (row > 0)) ** 2 + LOST * seen
        whole = beta2 * whole + (1 - beta2) * np.where(row >= SAFE, row, 0.0) ** 2
        whole = np.where(whole >= NORMAL, whole, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            square = recent / -np.expm1((t + 1) * _log(beta1)) / (whole / -np.expm1((t + 1) * _log(beta2)))
        # five roundings a step in each average of positive numbers, and of 1 - b; the corrections and the root
        slack = 1 + (2.5 * (t + 1) + 2 / (1 - beta1) + 2 / (1 - beta2) + 16) * U64
        found[t] = np.where(recent > 0, np.sqrt(square) * slack, 0.0)
    return found


def _log(beta: float) -> float:
    return float(np.log(beta)) if beta else -np.inf
