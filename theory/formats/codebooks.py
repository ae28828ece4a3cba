"""Formats with levels from a table: NF4 and FP4 of bitsandbytes, and the small floats E2M1 and E4M3.

Takes a name and a block size; gives a `Format`; `format_named` calls these functions by the name of a family.

>>> fmt = nf4("nf4-b64", 64)
>>> fmt.bits, len(fmt.levels), round(fmt.levels[1], 4)
(4, 16, -0.6962)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from unforgotten.theory.formats.description import BlockKind, Format

NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
FP4_TWELFTHS = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)  # by code; codes 8-15 carry the sign
FP4_ORDER = (11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3)  # ascending; 8 is the minus zero
E4M3_MAX = 448.0
E2M1_MAX = 6.0


def small_float(exponent_bits: int, mantissa_bits: int, bias: int, largest: float) -> list[float]:
    """Return the numbers >= 0 of a small float by label, up to `largest`; labels count them in ascending order."""
    values = []
    for label in range(2 ** (exponent_bits + mantissa_bits)):
        exponent, mantissa = divmod(label, 2**mantissa_bits)
        whole = mantissa + (2**mantissa_bits if exponent else 0)
        values.append(whole * 2.0 ** (max(exponent, 1) - bias - mantissa_bits))
    return [v for v in values if v <= largest]


def _signed(magnitudes: list[float], sign_bit: int) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Return levels and labels with both signs, one code for both zeros.

    A stored E2M1 or E4M3 has a sign bit, so that a weight below 0 that rounds to 0 is stored as minus zero, and its
    stored bits flip where the code does not: under U on one more threshold, at 0. The value is the same. FP4 of
    bitsandbytes is counted with both of its zeros.
    """
    negative = [-v for v in reversed(magnitudes[1:])]
    labels = [sign_bit + k for k in range(len(magnitudes) - 1, 0, -1)]
    return (*negative, *magnitudes), (*labels, *range(len(magnitudes)))


E2M1_LEVELS, E2M1_LABELS = _signed(small_float(2, 1, 1, E2M1_MAX), 8)
E4M3_LEVELS, E4M3_LABELS = _signed(small_float(4, 3, 7, E4M3_MAX), 128)


def nf4(name: str, block_size: int) -> Format:
    """Describe NormalFloat4 of QLoRA (arXiv 2305.14314), as bitsandbytes stores it."""
    return _bitsandbytes(name, NF4_LEVELS, tuple(range(16)), block_size)


def fp4(name: str, block_size: int) -> Format:
    """Describe FP4 of bitsandbytes, one mantissa bit and two codes for 0 (`transformers`' 4-bit default)."""
    table = [*FP4_TWELFTHS, *(-x for x in FP4_TWELFTHS)]
    twelfth = np.float32(12)
    levels = tuple(float(np.float32(table[code]) / twelfth) + 0.0 for code in FP4_ORDER)
    return _bitsandbytes(name, levels, FP4_ORDER, block_size)


def double_quantized(fmt: Format) -> Format:
    """Describe a format of bitsandbytes whose absmaxes are quantized to 8 bits, `bnb_4bit_use_double_quant` (see `dynamic`)."""
    return replace(fmt, name=f"{fmt.name}-dq", statistic="nested-absmax")


def _bitsandbytes(name: str, levels: tuple[float, ...], labels: tuple[int, ...], size: int) -> Format:
    return Format(
        name=name,
        bits=4,
        levels=levels,
        labels=labels,
        block="flat",
        block_size=size,
        statistic="absmax",
        divisor=1.0,
        arithmetic="multiply",
        floor=1e-38,
        unit=1.0,
        rounding="half-lower",
        zero="none",
        source="bitsandbytes 0.50.2, CPU",
    )


def fp8(name: str, block: BlockKind, block_size: int | None) -> Format:
    """Describe FP8 E4M3 (arXiv 2209.05433), scale `absmax / 448`, saturated; a scale of 0 becomes 2^-23."""
    return Format(
        name=name,
        bits=8,
        levels=E4M3_LEVELS,
        labels=E4M3_LABELS,
        block=block,
        block_size=block_size,
        statistic="absmax",
        divisor=E4M3_MAX,
        arithmetic="divide",
        floor=0.0,
        unit=1.0,
        rounding="half-even-label",
        zero="none",
        source="compressed-tensors 0.19.0",
        empty_scale=2.0**-23,
    )


def fp8_tile(name: str, rows: int, columns: int) -> Format:
    """Describe FP8 E4M3 with a float32 scale for each tile of rows and columns, as DeepSeek-V3 is stored (arXiv 2412.19437).

    `transformers` multiplies by the quotient 448 / absmax and stores its reciprocal, so that it has other codes next to a
    threshold; scales that are rounded up to a power of two ("ue8m0") are none of this format.
    """
    return replace(fp8(name, "tile", rows * columns), tile=(rows, columns))


def fp8_cast(name: str) -> Format:
    """Describe FP8 E4M3 without a scale: each weight is rounded by itself, and saturates at 448."""
    return replace(fp8(name, "tensor", None), statistic="none", empty_scale=0.0, source="OCP 8-bit floats 1.0")


def mxfp4(name: str, block_size: int) -> Format:
    """Describe MXFP4: E2M1 elements, a power of two a block, `floor(log2 absmax) - 2`; what exceeds 6 saturates."""
    return Format(
        name=name,
        bits=4,
        levels=E2M1_LEVELS,
        labels=E2M1_LABELS,
        block="group",
        block_size=block_size,
        statistic="absmax",
        divisor=4.0,
        arithmetic="divide",
        floor=0.0,
        unit=1.0,
        rounding="half-even-label",
        zero="none",
        source="OCP Microscaling Formats 1.0, §6.3",
        scale_rule="power of two",
        overhang=2.0,
    )


def mxfp4_up(name: str, block_size: int) -> Format:
    """Describe MXFP4 as compressed-tensors scales it: absmax counts as the next power of two from 1.75 on, so v < 7."""
    return replace(
        mxfp4(name, block_size), scale_rule="power of two, up", overhang=1.75, source="compressed-tensors 0.19.0"
    )


def nvfp4(name: str) -> Format:
    """Describe NVFP4: E2M1 elements, an E4M3 scale for 16 of them, one float32 scale `2688 / absmax` for the tensor."""
    return Format(
        name=name,
        bits=4,
        levels=E2M1_LEVELS,
        labels=E2M1_LABELS,
        block="group",
        block_size=16,
        statistic="absmax",
        divisor=E2M1_MAX,
        arithmetic="divide",
        floor=0.0,
        unit=1.0,
        rounding="half-even-label",
        zero="none",
        source="compressed-tensors 0.19.0",
        scale_rule="float8 of tensor",
        tensor_range=E4M3_MAX * E2M1_MAX,
        empty_scale=0.125,
        overhang=17 / 16,
    )


CODEBOOKS: Mapping[str, Callable[[str, int], Format]] = {"nf4": nf4, "fp4": fp4}
MICROSCALED: Mapping[str, Callable[[str, int], Format]] = {"": mxfp4, "ct": mxfp4_up}
