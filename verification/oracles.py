"""Float32 arithmetic in exact rationals: an implementation of the formats that shares no code with `theory`.

One number at a time, one correctly rounded operation at a time, in `fractions.Fraction`.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from unforgotten.theory.formats import Format

U32 = 2.0**-24  # half the spacing of float32 numbers in [1, 2): the relative error of one rounding
ETA32 = 2.0**-149  # the smallest positive float32: twice the absolute error of a rounding near 0
U64 = 2.0**-53
SMALLEST_EXPONENT = -149
MAX32 = Fraction(float(np.finfo(np.float32).max))
HALF = Fraction(1, 2)


def round_half_even(x: Fraction) -> int:
    """The integer nearest to x, a tie going to the even one. (Python's rule for Fraction, stated here.)"""
    floor = x.numerator // x.denominator
    rest = x - floor
    return floor + int(rest > HALF or (rest == HALF and floor % 2 == 1))


def binade(x: Fraction) -> int:
    """e with 2^e <= |x| < 2^(e+1); x is not 0."""
    e = abs(x.numerator).bit_length() - x.denominator.bit_length()
    return e if abs(x) >= Fraction(2) ** e else e - 1


def nearest(x: Fraction, significant_bits: int, smallest_exponent: int) -> Fraction:
    """x rounded once, to nearest even, to a binary format with gradual underflow and no largest number."""
    if x == 0:
        return x
    step = Fraction(2) ** max(binade(x) - significant_bits + 1, smallest_exponent)
    return round_half_even(x / step) * step


def float32(x: Fraction) -> Fraction | None:
    """x rounded once to float32; None beyond its largest number."""
    rounded = nearest(x, 24, SMALLEST_EXPONENT)
    return rounded if abs(rounded) <= MAX32 else None


class BlockResult(NamedTuple):
    """What a format makes of one block: `values` holds None where a value overflows."""

    scale: Fraction
    zero: int
    codes: list[int]
    values: list[Fraction | None]


def quantize_block(weights: list[Fraction], fmt: Format, *, partial: bool = False) -> BlockResult:
    """Codes and values of one block, from the text of `Format`.

    Args:
        weights: exact values of float32 numbers; padding left out or 0.
        fmt: the format.
        partial: whether this is the last block of a flat tensor and not full.
    """
    scale, zero = fit_block(weights, fmt, partial=partial)
    codes = [block_code(w, scale, zero, fmt, partial=partial) for w in weights]
    return BlockResult(scale, zero, codes, [block_value(k, scale, zero, fmt) for k in codes])


def fit_block(weights: list[Fraction], fmt: Format, *, partial: bool) -> tuple[Fraction, int]:
    """Scale and zero point of one block."""
    if fmt.statistic == "absmax":
        absmax = max(abs(w) for w in weights)
        if partial and fmt.floor:
            absmax = max(absmax, Fraction(float(np.float32(fmt.floor))))
        return (_checked(absmax / _exact(fmt.divisor)) if fmt.arithmetic == "divide" else absmax), 0
    low, high = min([*weights, Fraction(0)]), max([*weights, Fraction(0)])
    scale = _checked(_checked(high - low) / _exact(fmt.divisor))
    ratio = float32(-low / scale) if scale else None
    return scale, 0 if ratio is None else min(round_half_even(ratio), int(fmt.levels[-1]))


def block_code(w: Fraction, scale: Fraction, zero: int, fmt: Format, *, partial: bool) -> int:
    """The code of one weight."""
    ratio = _ratio(w, scale, fmt, partial=partial)
    if fmt.rounding == "half-lower":
        return sum(t < ratio for t in midpoints(fmt))
    top = len(fmt.levels) - 1
    return min(max(round_half_even(ratio) + zero - int(fmt.levels[0]), 0), top)


def reciprocal_scale(scale: Fraction, fmt: Format) -> Fraction | None:
    """The factor of "multiply": 1 / scale and its product with the divisor, each rounded; None where it overflows."""
    inverse = float32(1 / scale) if scale else None
    return float32(inverse * _exact(fmt.divisor)) if inverse is not None else None


def block_value(code: int, scale: Fraction, zero: int, fmt: Format) -> Fraction | None:
    """The value of one code, None where it overflows."""
    value = float32((_exact(fmt.levels[code]) - zero) * scale)
    if value is None or fmt.unit == 1.0:
        return value
    return float32(value * _exact(float(np.float32(fmt.unit))))


def midpoints(fmt: Format) -> list[Fraction]:
    """Thresholds: midpoints of neighbouring levels, each rounded once to float32."""
    levels = [_exact(x) for x in fmt.levels]
    return [_checked((a + b) / 2) for a, b in pairwise(levels)]


def _ratio(w: Fraction, scale: Fraction, fmt: Format, *, partial: bool) -> Fraction:
    if fmt.arithmetic == "divide":
        return _saturated(w / scale) if scale else Fraction(0)
    floor = _exact(float(np.float32(fmt.floor)))
    if partial and fmt.floor:
        return _saturated(w / max(scale, floor))
    reciprocal = reciprocal_scale(max(scale, floor), fmt)
    return _saturated(w * reciprocal) if reciprocal is not None else Fraction(0)


def _saturated(x: Fraction) -> Fraction:
    rounded = float32(x)
    return rounded if rounded is not None else MAX32 * (1 if x > 0 else -1)


def _exact(x: float) -> Fraction:
    return Fraction(x)


def _checked(x: Fraction) -> Fraction:
    rounded = float32(x)
    if rounded is None:
        raise OverflowError(f"a parameter of the block must be a float32, got {float(x)!r}")
    return rounded
