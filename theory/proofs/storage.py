"""T4, exhaustively: every value of a 16-bit or 8-bit float, every update, in both directions.

That a finite list of updates is enough: a rounded sum changes only at midpoints of the format, and those around a
weight lie at a power of two from it. So what happens for all real eta > 0 is decided at 2^k, just above it, and just
below 2^(k+1), for every k from below half the smallest number to above the largest.

A proof takes nothing and returns nothing; it raises AssertionError where its statement fails.

>>> float8_dead_zone()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.claims import proof
from unforgotten.theory.geometry.dead_zone import SIGNIFICANT_BITS, frozen_exponent

Edge = Callable[[float, str], int]
Rule = Callable[[float, NDArray[Any], NDArray[Any]], None]  # of eta, what moves away, what moves toward 0


@dataclass(frozen=True)
class Storage:
    """A binary floating-point format: p significant bits, a smallest step, a largest number."""

    dtype: str
    significant_bits: int
    smallest_step: int  # exponent of the smallest positive number
    largest: float
    finite: NDArray[Any]  # every finite value, of both signs, float64
    odd: NDArray[Any]  # whether its last bit is set

    @property
    def smallest_normal(self) -> int:
        """Exponent of the smallest normal number."""
        return self.smallest_step + self.significant_bits - 1


def storage(dtype: str) -> Storage:
    """Read the format from its library: every bit pattern, as a number."""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    pattern = {1: np.uint8, 2: np.uint16}[kind.itemsize]
    bits = np.arange(256**kind.itemsize, dtype=pattern)
    with np.errstate(invalid="ignore"):
        values = bits.view(kind).astype(np.float64)
    finite = values[np.isfinite(values)]
    return Storage(
        dtype=dtype,
        significant_bits=SIGNIFICANT_BITS[dtype],
        smallest_step=round(math.log2(finite[finite > 0].min())),
        largest=float(finite.max()),
        finite=finite,
        odd=(bits % 2 == 1)[np.isfinite(values)],
    )


def rounded_sum(w: NDArray[Any], eta: float | NDArray[Any], significant_bits: int, smallest_step: int) -> NDArray[Any]:
    """Return w + eta, rounded once to nearest even, as float64 without a largest number.

    The float64 sum and its error are exact together (Knuth's two-sum); the error breaks what looks like a tie.
    """
    total = w + eta
    part = total - w
    error = (w - (total - part)) + (eta - part)
    _, exponent = np.frexp(total)
    step = np.maximum(exponent - significant_bits, smallest_step)
    scaled = np.ldexp(total, -step)
    below = np.floor(scaled)
    rest = scaled - below
    tie_up = (error > 0) | ((error == 0) & (below % 2 == 1))
    return np.ldexp(below + ((rest > 0.5) | ((rest == 0.5) & tie_up)), step)


def critical_updates(s: Storage) -> Iterator[float]:
    """Yield the sizes at which a verdict can change, and their neighbours in float64."""
    for k in range(s.smallest_step - 3, math.frexp(s.largest)[1] + 2):
        low, high = 2.0**k, 2.0 ** (k + 1)
        yield from (low, math.nextafter(low, high), math.nextafter(high, low))


def moves(s: Storage, eta: float, *, saturate: bool = False) -> tuple[NDArray[Any], NDArray[Any]]:
    """Find which weights an update of size eta moves: (away from 0, toward 0).

    A sum beyond the largest number counts as moved: it becomes inf, or NaN in float8_e4m3fn, which has no inf.
    With `saturate` it becomes the largest number, as a saturating cast does.
    """
    sign = np.where(np.signbit(s.finite), -1.0, 1.0)
    results = (rounded_sum(s.finite, d * eta * sign, s.significant_bits, s.smallest_step) for d in (1, -1))
    if saturate:
        results = (np.clip(r, -s.largest, s.largest) for r in results)
    away, toward = (r != s.finite for r in results)
    return away, toward


def check(s: Storage, *rules: Rule) -> None:
    """Assert that every rule holds at every critical update.

    Raises:
        AssertionError: one does not.
    """
    for eta in critical_updates(s):
        moved = moves(s, eta)
        for rule in rules:
            rule(eta, *moved)


def dead_zone_rule(s: Storage, edge_of: Edge = frozen_exponent) -> Rule:
    """Return the rule that `edge_of` says the smallest edge above which nothing moves, with the stated exception."""
    size = np.abs(s.finite)

    def rule(eta: float, away: NDArray[Any], toward: NDArray[Any]) -> None:
        e, where = edge_of(eta, s.dtype), f"{s.dtype} with eta={eta!r}"
        edge = math.ldexp(1.0, e)
        at, above = size == edge, size > edge
        assert not away[above | at].any(), f"moves away from 0 above the edge: {where}"
        assert not toward[above].any(), f"moves toward 0 above the edge: {where}"
        excepted = eta > math.ldexp(1.0, e - s.significant_bits - 1) and e > s.smallest_normal
        assert (toward[at] == excepted).all(), f"another exception at 2^e: {where}"
        if e - 1 < s.smallest_normal:
            return  # subnormal: the spacing is wider than the formula says, and the edge only sound
        below = (size >= edge / 2) & (size < edge)
        beyond_half = eta > math.ldexp(1.0, e - 1 - s.significant_bits)
        assert away[below & (s.odd | beyond_half)].all(), f"frozen below the edge: {where}"

    return rule


def half_ulp_rule(s: Storage, *, one_ulp_for_both_sides: bool = False) -> Rule:
    """State: w + eta rounds to w iff |eta| < gap/2, or = gap/2 and w even; gap: distance to the neighbour on that side.

    Toward 0 from a power of two the gap is half of the ulp, so "|eta| < ulp(w)/2 returns w" needs the side.
    """
    size = np.abs(s.finite)
    mantissa, exponent = np.frexp(size)
    step = np.where(size > 0, exponent - s.significant_bits, s.smallest_step)
    ulp = np.ldexp(1.0, np.maximum(step, s.smallest_step))
    power = (mantissa == 0.5) & (size > math.ldexp(1.0, s.smallest_normal))
    below = np.where(power & (not one_ulp_for_both_sides), ulp / 2, ulp)

    def rule(eta: float, away: NDArray[Any], toward: NDArray[Any]) -> None:
        for moved, gap in ((away, ulp), (toward, below)):
            stated = (eta > gap / 2) | ((eta == gap / 2) & s.odd)
            assert (moved == stated).all(), f"half an ulp: {s.dtype} with eta={eta!r}"

    return rule


def saturation_rule(s: Storage) -> Rule:
    """Return the rule that a saturating cast freezes the largest number away from 0, else moves as a plain one."""
    top, zero = np.abs(s.finite) == s.largest, s.finite == 0

    def rule(eta: float, away: NDArray[Any], toward: NDArray[Any]) -> None:
        clipped_away, clipped_toward = moves(s, eta, saturate=True)
        where = f"saturation: {s.dtype} with eta={eta!r}"
        assert not clipped_away[top].any(), where
        assert (clipped_away == away)[~top].all(), where
        assert (clipped_toward == toward)[~zero].all(), where

    return rule


def check_float32_sum(dtype: str, *, units: float = 1.0) -> None:
    """Check that adding in float32 and then rounding still freezes |w| > 2^e if eta < 2^(e-p) - units * 2^(e-24).

    Raises:
        AssertionError: a weight above the edge moves.
    """
    s = storage(dtype)
    size, sign = np.abs(s.finite), np.sign(s.finite)
    for k in range(s.smallest_step, math.frexp(s.largest)[1] - 1):
        e = k + s.significant_bits
        limit = math.ldexp(1.0, k) - units * math.ldexp(1.0, e - 24)
        above = size > math.ldexp(1.0, e)
        w = s.finite[above]
        for direction in (1, -1):
            eta = direction * math.nextafter(limit, 0) * sign[above]
            total = rounded_sum(w, eta, 24, -149)
            stored = rounded_sum(total, 0.0, s.significant_bits, s.smallest_step)
            assert (stored == w).all(), f"{dtype} with eta={limit!r}"


@proof("T4", method="exhaustive", domain="float16, all finite values, every real eta > 0")
def float16_dead_zone() -> None:
    """Frozen from 2^e on, smallest e with 2^(e-p) > eta; 2^e itself moves toward 0 iff eta > 2^(e-p)/2 (normals)."""
    s = storage("float16")
    check(s, half_ulp_rule(s), dead_zone_rule(s))


@proof("T4", method="exhaustive", domain="bfloat16, all finite values, every real eta > 0")
def bfloat16_dead_zone() -> None:
    """Frozen from 2^e on, smallest e with 2^(e-p) > eta; 2^e itself moves toward 0 iff eta > 2^(e-p)/2 (normals)."""
    s = storage("bfloat16")
    check(s, half_ulp_rule(s), dead_zone_rule(s))


@proof("T4", method="exhaustive", domain="float8_e4m3fn and float8_e5m2, all finite values, every real eta > 0")
def float8_dead_zone() -> None:
    """The same with p = 4 and p = 3; a sum beyond the largest number counts as moved.

    A saturating cast freezes the largest number itself away from 0 at every eta, and changes nothing else.
    """  # noqa: D401
    for dtype in ("float8_e4m3fn", "float8_e5m2"):
        s = storage(dtype)
        check(s, half_ulp_rule(s), dead_zone_rule(s), saturation_rule(s))


@proof("T4", method="exhaustive", domain="float32 sums stored in float16, bfloat16 or float8, all finite values")
def float32_sum_dead_zone() -> None:
    """A sum rounded to float32 first freezes every |w| > 2^e for eta < 2^(e-p) - 2^(e-24)."""  # noqa: D401
    for dtype in ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"):
        check_float32_sum(dtype)
