"""T4: weights that a floating-point format is too coarse to move, and how to see them in a pair of checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.claims import claim

SIGNIFICANT_BITS: Mapping[str, int] = {
    "float32": 24,
    "float16": 11,
    "bfloat16": 8,
    "float8_e4m3fn": 4,
    "float8_e5m2": 3,
}
SMALLEST_NORMAL_EXPONENT: Mapping[str, int] = {
    "float32": -126,
    "float16": -14,
    "bfloat16": -126,
    "float8_e4m3fn": -6,
    "float8_e5m2": -14,
}
SHORT_NAMES: Mapping[str, str] = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
"""What practitioners call the dtypes that weights are trained in."""
BINADES = range(-40, 41)
MIN_WEIGHTS = 200  # a binade with fewer weights says nothing


@claim("T4", kind="exact", source="round to nearest even, IEEE 754-2019 §4.3.1")
def frozen_exponent(eta: float, dtype: str) -> int:
    """Every weight with |w| > 2^e is frozen under updates of size at most eta; e is the smallest with 2^(e-p) > eta.

    So is |w| = 2^e, but toward 0 if 2^e is above the smallest normal number: its neighbour there is at 2^(e-p), so a
    step toward 0 of more than 2^(e-p) / 2 moves it. Sound in the subnormal range too, where the spacing
    is only wider than the formula says. The sum is rounded once: a kernel that adds in float32 first can turn a sum
    just below a tie into the tie, so there the statement needs eta < 2^(e-p) - 2^(e-24).

    That e is the smallest counts a sum beyond the largest number as moved: it becomes inf, and NaN in float8_e4m3fn,
    which has no inf and ends at 448 (float8_e5m2 ends at 57344). A cast that saturates freezes the largest number
    away from 0, whatever eta is. An edge above the largest number freezes nothing.

    Args:
        eta: largest size of one update, > 0.
        dtype: dtype of the weights, one of SIGNIFICANT_BITS, with p significant bits: "float32", "float16", "bfloat16",
            "float8_e4m3fn" or "float8_e5m2".

    Raises:
        ValueError: eta is not positive and finite, or the dtype is unknown.
    """
    if not (math.isfinite(eta) and eta > 0):
        raise ValueError(f"eta must be positive and finite, got eta={eta!r}")
    check_dtype(dtype)
    _, exponent = math.frexp(eta)  # 2^(exponent - 1) <= eta < 2^exponent
    return exponent + SIGNIFICANT_BITS[dtype]


def check_dtype(dtype: str) -> None:
    """Refuse what is no floating-point storage dtype.

    Raises:
        ValueError: with the names that are known.
    """
    if dtype not in SIGNIFICANT_BITS:
        raise ValueError(f"dtype must be one of {', '.join(SIGNIFICANT_BITS)}, got dtype={dtype!r}")


@dataclass(frozen=True)
class BinadeCounts:
    """For every binade [2^e, 2^(e+1)) of |w|, e in BINADES: weights, and weights that moved. The ends are open."""

    weights: tuple[int, ...]
    moved: tuple[int, ...]


def count_binades(w: NDArray[Any], w_new: NDArray[Any]) -> BinadeCounts:
    """Count the moved weights of a pair by the magnitude of the weight before. Zeros count in the lowest binade."""
    _, exponent = np.frexp(np.abs(np.asarray(w, np.float32)).ravel())
    exponent = np.where(np.asarray(w).ravel() == 0, BINADES[0], exponent - 1)
    index = np.clip(exponent, BINADES[0], BINADES[-1]) - BINADES[0]
    moved = np.asarray(w_new).ravel() != np.asarray(w).ravel()
    return BinadeCounts(
        tuple(np.bincount(index, minlength=len(BINADES)).tolist()),
        tuple(np.bincount(index[moved], minlength=len(BINADES)).tolist()),
    )


def add_binades(parts: list[BinadeCounts]) -> BinadeCounts:
    """Return the counts of several tensors together."""
    return BinadeCounts(
        tuple(int(n) for n in np.sum([p.weights for p in parts], axis=0)),
        tuple(int(n) for n in np.sum([p.moved for p in parts], axis=0)),
    )


@dataclass(frozen=True)
class DeadZone:
    """What a pair shows of a dead zone.

    Attributes:
        detected: whether magnitude decides which weights moved.
        threshold: 2^e, from which on (almost) nothing moved; nan if not detected.
        lr_estimate: (low, high): the step sizes whose dead zone begins there, half an ulp below and above the
            threshold; nan if not detected.
    """

    detected: bool
    threshold: float
    lr_estimate: tuple[float, float]


FROZEN_SHARE = 0.02  # of a binade's weights, at most, moved above the threshold: momentum lets a step exceed lr
MOVING_SHARE = 0.5  # of a binade's weights, at least, moved far below it


def find_dead_zone(counts: BinadeCounts, dtype: str) -> DeadZone:
    """Return the smallest 2^e from which on every binade is frozen, if a lower binade moves.

    A rule, not a theorem: binades of at least MIN_WEIGHTS weights; frozen means that at most FROZEN_SHARE moved,
    moving that at least MOVING_SHARE did. An update of one size for all weights that was saved in a coarse dtype
    looks the same; then the estimate is the size of the whole update and not of one step.

    Args:
        counts: result of `count_binades`.
        dtype: storage dtype of the pair.
    """
    nothing = DeadZone(False, math.nan, (math.nan, math.nan))
    seen = [
        (e, moved / n) for e, n, moved in zip(BINADES, counts.weights, counts.moved, strict=True) if n >= MIN_WEIGHTS
    ]
    frozen_from = None
    for e, share in reversed(seen):
        if share > FROZEN_SHARE:
            break
        frozen_from = e
    if frozen_from is None or max(share for _, share in seen) < MOVING_SHARE:
        return nothing
    half_ulp = math.ldexp(1.0, frozen_from - SIGNIFICANT_BITS[dtype])
    return DeadZone(True, math.ldexp(1.0, frozen_from), (half_ulp / 2, half_ulp))
