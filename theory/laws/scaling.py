"""T10: how flips grow with bits and fall with the block."""

from __future__ import annotations

from unforgotten.theory.claims import claim
from unforgotten.theory.laws.absmax import expected_inverse_absmax
from unforgotten.theory.laws.densities import Density


def steps_per_absmax(bits: int) -> int:
    """Return 2^(b-1) - 1: the steps between 0 and the absmax of symmetric integers.

    Raises:
        ValueError: bits is not in 2 ... 8.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be in 2 ... 8, got bits={bits}")
    return int(2 ** (bits - 1) - 1)


@claim("T10", kind="law", source="T6 under U with step = absmax / (2^(b-1) - 1)")
def flip_rate(delta: float, bits: int, density: Density, size: int) -> float:
    """P(flip) = |delta| (2^(b-1) - 1) E[1 / absmax_B], under U, for |delta| below the smallest likely step.

    So int8 : int4 = 127 : 7, and block sizes compare as their E[1 / absmax]. It is an upper bound on the mean of
    min(|delta| / step, 1) at any delta.

    Args:
        delta: the update.
        bits: bits of a code of symmetric integers, 2 ... 8.
        density: density of the weights.
        size: B >= 2.
    """
    return abs(delta) * steps_per_absmax(bits) * expected_inverse_absmax(density, size)


@claim("T10", kind="law", source="ratio of T6's laws")
def flip_ratio(bits: int, other_bits: int) -> float:
    """P(flip at b bits) / P(flip at b' bits) = (2^(b-1) - 1) / (2^(b'-1) - 1), at one block size and small delta."""
    return steps_per_absmax(bits) / steps_per_absmax(other_bits)
