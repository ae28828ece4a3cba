"""Float32 arithmetic in exact rationals: an implementation of the formats that shares no code with `theory`.

One number at a time, one correctly rounded operation at a time, in `fractions.Fraction`.

Takes a block as a list of fractions, with its format; gives codes and values as fractions.

>>> from unforgotten.theory.formats.names import format_named
>>> float32(Fraction(1, 3)) - Fraction(1, 3)
Fraction(1, 100663296)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from unforgotten.theory.formats.names import Format

U32 = 2.0**-24  # half the spacing of float32 numbers in [1, 2): the relative error of one rounding
ETA32 = 2.0**-149  # the smallest positive float32: twice the absolute error of a rounding near 0
U64 = 2.0**-53
SMALLEST_EXPONENT = -149
MAX32 = Fraction(float(np.finfo(np.float32).max))
HALF = Fraction(1, 2)
FLOAT16 = (11, -24)  # significant bits, smallest exponent
SMALL_FLOATS: Mapping[int, tuple[int, int]] = {4: (2, -1), 8: (4, -9)}  # E2M1, E4M3, by bits


def round_half_even(x: Fraction) -> int:
    """Return the integer nearest to x, a tie going to the even one: Python's rule for Fraction, stated here."""
    floor = x.numerator // x.denominator
    rest = x - floor
    return floor + int(rest > HALF or (rest == HALF and floor % 2 == 1))


def binade(x: Fraction) -> int:
    """Return e with 2^e <= |x| < 2^(e+1); x is not 0."""
    e = abs(x.numerator).bit_length() - x.denominator.bit_length()
    return e if abs(x) >= Fraction(2) ** e else e - 1


def nearest(x: Fraction, significant_bits: int, smallest_exponent: int) -> Fraction:
    """Round x once, to nearest even, to a binary format with gradual underflow and no largest number."""
    if x == 0:
        return x
    step = Fraction(2) ** max(binade(x) - significant_bits + 1, smallest_exponent)
    return round_half_even(x / step) * step


def float32(x: Fraction) -> Fraction | None:
    """Round x once to float32; None beyond its largest number."""
    rounded = nearest(x, 24, SMALLEST_EXPONENT)
    return rounded if abs(rounded) <= MAX32 else None


class Parameters(NamedTuple):
    """Of one block. Codes are made with the first three, values with `stored` ones where they differ."""

    scale: Fraction
    zero: Fraction
    low: Fraction = Fraction(0)
    stored_scale: Fraction | None = None
    stored_low: Fraction | None = None

    @property
    def read_scale(self) -> Fraction:
        """The scale of the values."""
        return self.scale if self.stored_scale is None else self.stored_scale

    @property
    def read_low(self) -> Fraction:
        """What is added to the values."""
        return self.low if self.stored_low is None else self.stored_low


class BlockResult(NamedTuple):
    """What a format makes of one block: `values` holds None where a value overflows."""

    parameters: Parameters
    codes: list[int]
    values: list[Fraction | None]


def quantize_block(
    weights: list[Fraction], fmt: Format, *, partial: bool = False, tensor_absmax: Fraction = Fraction(0)
) -> BlockResult:
    """Return the codes and values of one block, from the text of `Format`.

    Args:
        weights: exact values of float32 numbers; padding left out or 0.
        fmt: the format.
        partial: whether this is the last block of a flat tensor and not full.
        tensor_absmax: largest magnitude of the tensor; only formats with a tensor scale look at it.
    """
    p = fit_block(weights, fmt, partial=partial, tensor_absmax=tensor_absmax)
    codes = [block_code(w, p, fmt, partial=partial) for w in weights]
    return BlockResult(p, codes, [block_value(k, p, fmt) for k in codes])


def fit_block(
    weights: list[Fraction], fmt: Format, *, partial: bool, tensor_absmax: Fraction = Fraction(0)
) -> Parameters:
    """Return the parameters of one block."""
    low, high = min(weights), max(weights)
    absmax = max(high, -low)
    signed = next(w for w in weights if abs(w) == absmax)
    if partial and fmt.floor:
        absmax = max(absmax, _constant(fmt.floor))
    by_statistic: Mapping[str, Callable[[], Parameters]] = {
        "absmax": lambda: Parameters(_scale(absmax, fmt, tensor_absmax), Fraction(0)),
        "signed-absmax": lambda: Parameters(_scale(signed, fmt, tensor_absmax), Fraction(0)),
        "range": lambda: _with_zero_point(min(low, Fraction(0)), max(high, Fraction(0)), fmt),
        "min-max": lambda: Parameters(_checked(_checked(high - low) / _exact(fmt.divisor)), Fraction(0), low),
        "hqq": lambda: _hqq(low, high, fmt),
        "none": lambda: Parameters(Fraction(1), Fraction(0)),
    }
    return _stored(by_statistic[fmt.statistic](), fmt)


def _scale(statistic: Fraction, fmt: Format, tensor_absmax: Fraction) -> Fraction:
    if fmt.arithmetic == "multiply":
        return statistic
    if fmt.scale_rule == "quotient":
        scale = _checked(statistic / _exact(fmt.divisor))
        if fmt.least_scale:
            scale = max(scale, _exact(fmt.least_scale))
        return scale or _exact(fmt.empty_scale)
    if fmt.scale_rule == "float8 of tensor":
        return _float8_scale(statistic, fmt, max(tensor_absmax, Fraction(2) ** -126))
    if statistic == 0:
        return Fraction(2) ** -127
    e = binade(statistic)
    if fmt.scale_rule == "power of two, up" and statistic >= Fraction(7, 4) * Fraction(2) ** e:
        e += 1
    return Fraction(2) ** max(-127, e - 2)


def _float8_scale(absmax: Fraction, fmt: Format, tensor_absmax: Fraction) -> Fraction:
    inverse = float32(1 / tensor_absmax)
    tensor_scale = float32(inverse * 2688) if inverse is not None else None
    tensor_scale = Fraction(1) if tensor_scale is None else tensor_scale
    wanted = float32(tensor_scale * _checked(absmax / 6))
    rounded = nearest(min(Fraction(448) if wanted is None else wanted, Fraction(448)), 4, -9)
    return _checked((rounded or Fraction(1, 8)) / tensor_scale)


def _with_zero_point(low: Fraction, high: Fraction, fmt: Format) -> Parameters:
    scale = _checked(_checked(high - low) / _exact(fmt.divisor))
    if fmt.least_scale:
        scale = max(scale, _exact(fmt.least_scale))
    lowest, top = int(fmt.levels[0]), int(fmt.levels[-1])
    distance = float32(-low / scale) if scale else None
    if fmt.zero_first:
        unbounded = scale == 0 and low < 0  # x / 0
        start = _checked(lowest + (distance or Fraction(0)))
        zero = Fraction(top) if unbounded else Fraction(round_half_even(min(start, Fraction(top))))
    else:
        zero = Fraction(lowest if distance is None else min(lowest + round_half_even(distance), top))
    return Parameters(scale or _exact(fmt.empty_scale), zero)


def _hqq(low: Fraction, high: Fraction, fmt: Format) -> Parameters:
    spread = _checked(high - low)
    inverse = Fraction(1)
    if spread > _constant(1e-4):
        inverse = min(_checked(_checked(1 / spread) * _exact(fmt.divisor)), Fraction(20000))
    return Parameters(inverse, _checked(-low * inverse), stored_scale=_checked(1 / inverse))


def _stored(p: Parameters, fmt: Format) -> Parameters:
    if fmt.storage == "float32":
        return p
    scale, low = (nearest(x, *FLOAT16) for x in (p.scale, p.low))
    if max(abs(scale), abs(low)) > 65504:
        raise OverflowError(f"a parameter of the block must be a float16, got {float(p.scale)!r}")
    return p._replace(stored_scale=scale, stored_low=low)


def block_code(w: Fraction, p: Parameters, fmt: Format, *, partial: bool) -> int:
    """Return the code of one weight."""
    ratio = _ratio(w, p, fmt, partial=partial)
    by_rounding: Mapping[str, Callable[[], int]] = {
        "half-lower": lambda: sum(t < ratio for t in midpoints(fmt)),
        "half-even-label": lambda: fmt.levels.index(_small_float(ratio, fmt)),
        "half-even": lambda: _clipped(
            round_half_even(_saturated(ratio + p.zero)) if fmt.zero_first else round_half_even(ratio) + int(p.zero), fmt
        ),
        "half-up": lambda: _clipped(int(_saturated(ratio + HALF - int(fmt.levels[0]))) + int(fmt.levels[0]), fmt),
        "half-away": lambda: _clipped(int(ratio + (HALF if ratio > 0 else -HALF)), fmt),
    }
    return by_rounding[fmt.rounding]()


def _clipped(number: int, fmt: Format) -> int:
    return min(max(number - int(fmt.levels[0]), 0), len(fmt.levels) - 1)


def _small_float(x: Fraction, fmt: Format) -> float:
    """Round x as a float of the format's bits, saturated."""
    top = _exact(fmt.levels[-1])
    return float(nearest(min(max(x, -top), top), *SMALL_FLOATS[fmt.bits]))


def reciprocal_scale(scale: Fraction, fmt: Format) -> Fraction | None:
    """Return the factor that multiplies the weight, each step rounded; None if it overflows or says nothing."""
    inverse = float32(1 / scale) if scale else None
    if fmt.arithmetic == "reciprocal":
        return inverse
    return float32(inverse * _exact(fmt.divisor)) if inverse is not None else None


def block_value(code: int, p: Parameters, fmt: Format) -> Fraction | None:
    """Return the value of one code, None where it overflows."""
    value = float32(_checked(_exact(fmt.levels[code]) - p.zero) * p.read_scale)
    if value is not None and fmt.unit != 1.0:
        value = float32(value * _constant(fmt.unit))
    return float32(value + p.read_low) if value is not None else None


def midpoints(fmt: Format) -> list[Fraction]:
    """Return the thresholds: midpoints of neighbouring levels, each rounded once to float32."""
    levels = [_exact(x) for x in fmt.levels]
    return [_checked((a + b) / 2) for a, b in pairwise(levels)]


def exact_units(w: Fraction, p: Parameters, fmt: Format, *, partial: bool) -> Fraction:
    """Return code units without a rounding, but for those in the parameters and in the reciprocal."""
    factor = _factor(p.scale, fmt, partial=partial)
    return p.zero + (Fraction(0) if factor is None else (w - p.low) * factor)


def _factor(scale: Fraction, fmt: Format, *, partial: bool) -> Fraction | None:
    """Return what the weight is multiplied by; a division is exact here. None where the scale says nothing."""
    floor = _constant(fmt.floor)
    if fmt.arithmetic == "divide" or partial:
        return 1 / max(scale, floor) if max(scale, floor) else None
    if fmt.arithmetic == "inverse":
        return scale
    return reciprocal_scale(max(scale, floor) if floor else scale, fmt)


def _ratio(w: Fraction, p: Parameters, fmt: Format, *, partial: bool) -> Fraction:
    factor = _factor(p.scale, fmt, partial=partial)
    return Fraction(0) if factor is None else _saturated(_saturated(w - p.low) * factor)


def _saturated(x: Fraction) -> Fraction:
    rounded = float32(x)
    return rounded if rounded is not None else MAX32 * (1 if x > 0 else -1)


def _exact(x: float) -> Fraction:
    return Fraction(x)


def _constant(x: float) -> Fraction:
    """Return a constant of a kernel, which is a float32, exactly."""
    return Fraction(float(np.float32(x)))


def _checked(x: Fraction) -> Fraction:
    rounded = float32(x)
    if rounded is None:
        raise OverflowError(f"a parameter of the block must be a float32, got {float(x)!r}")
    return rounded
