"""From the statistic of a block to its scale, in float32: the scale rules of the formats, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.formats.codebooks import fp8_cast
from unforgotten.theory.formats.description import Format
from unforgotten.theory.formats.rounding import half_even_label

Array = NDArray[Any]
E8M0_EXPONENTS = (-127, 127)
LARGEST_MANTISSA = 1.75  # from which on "power of two, up" counts as the next one
E4M3 = fp8_cast("fp8-cast")


def quotient(statistic: Array, fmt: Format) -> Array:
    """Return `statistic / divisor`, not below the least scale, and not 0 where the format replaces that."""
    scale = statistic / np.float32(fmt.divisor)
    if fmt.least_scale:
        scale = np.maximum(scale, np.float32(fmt.least_scale))
    return replace_empty(scale, fmt)


def replace_empty(scale: Array, fmt: Format) -> Array:
    """Return the scale, or the format's empty scale where it is 0."""
    return np.where(scale == 0, np.float32(fmt.empty_scale), scale) if fmt.empty_scale else scale


def power_of_two(absmax: Array, fmt: Format) -> Array:
    """Return the largest 2^e with `2^e divisor <= absmax`, for a divisor that is a power of two; -127 <= e <= 127."""
    _, exponent = np.frexp(absmax)  # absmax < 2^exponent
    return _e8m0(np.where(absmax > 0, exponent - 1, E8M0_EXPONENTS[0]), fmt)


def power_of_two_up(absmax: Array, fmt: Format) -> Array:
    """Return the scale of `power_of_two`, but with e + 1 where absmax is at least 1.75 2^e divisor."""
    mantissa, exponent = np.frexp(absmax)
    up = mantissa >= LARGEST_MANTISSA / 2
    return _e8m0(np.where(absmax > 0, exponent - 1 + up, E8M0_EXPONENTS[0]), fmt)


def _e8m0(exponent: Array, fmt: Format) -> Array:
    exponent = np.clip(exponent - int(math.log2(fmt.divisor)), *E8M0_EXPONENTS)
    return np.ldexp(np.float32(1), exponent).astype(np.float32)


def float8_of_tensor(absmax: Array, fmt: Format) -> Array:
    """Return `E4M3(G absmax / divisor) / G`, `G = tensor_range / absmax of the tensor`, 1 where that overflows."""
    with np.errstate(over="ignore"):
        largest = np.maximum(absmax.max(), np.finfo(np.float32).tiny)
        tensor_scale = np.float32(1) / largest * np.float32(fmt.tensor_range)
        tensor_scale = tensor_scale if np.isfinite(tensor_scale) else np.float32(1)
        scale = tensor_scale * (absmax / np.float32(fmt.divisor))
    levels = np.asarray(E4M3.levels, np.float32)
    rounded = levels[half_even_label(scale, np.zeros_like(scale), E4M3)]
    return replace_empty(rounded, fmt) / tensor_scale


SCALE_RULES: Mapping[str, Callable[[Array, Format], Array]] = {
    "quotient": quotient,
    "power of two": power_of_two,
    "power of two, up": power_of_two_up,
    "float8 of tensor": float8_of_tensor,
}
