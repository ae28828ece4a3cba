"""Quantization formats as data: one description that every implementation reads.

A format maps a block of weights to codes. In *code units* a weight is `v = w / scale + zero`; its code is the
index of the level that `v` rounds to; its value is `(levels[code] - zero) * scale * unit`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

BlockKind = Literal["tensor", "row", "group", "flat"]
Arithmetic = Literal["divide", "multiply"]
Rounding = Literal["half-even", "half-lower"]


@dataclass(frozen=True)
class Format:
    """One quantization format.

    Attributes:
        name: as on the command line, e.g. "int4-g64".
        bits: bits of one code.
        levels: the values of the codes in code units, ascending; a code is an index into them.
        labels: what a library stores for each code.
        block: which weights share a scale. "group": `block_size` neighbours in a row; "flat": `block_size`
            neighbours of the flattened tensor, across rows, as bitsandbytes does.
        block_size: None for "tensor" and "row".
        statistic: what sets the scale: the largest magnitude, or the range widened to contain 0.
        divisor: scale = statistic / divisor, where the scale is stored divided.
        arithmetic: "divide": `w / scale` with `scale = statistic / divisor`; "multiply": `w * ((1 / statistic) *
            divisor)`, the scale stored being the statistic itself. Every operation in float32, as the kernels do:
            torch computes `127.0 / absmax` as a reciprocal times 127, which is rounded twice.
        floor: smallest statistic that the reciprocal sees (bitsandbytes: 1e-38); 0 for none.
        unit: float32 factor of the value (LLM.int8: 1/127 rounded to float32).
        rounding: "half-even": a tie goes to the even integer before the zero point is added; "half-lower": to
            the lower level.
        zero_point: whether an integer zero point shifts the codes.
        source: where the rule was read.
    """

    name: str
    bits: int
    levels: tuple[float, ...]
    labels: tuple[int, ...]
    block: BlockKind
    block_size: int | None
    statistic: Literal["absmax", "range"]
    divisor: float
    arithmetic: Arithmetic
    floor: float
    unit: float
    rounding: Rounding
    zero_point: bool
    source: str

    @property
    def thresholds(self) -> NDArray[Any]:
        """Float32 midpoints between neighbouring levels, in code units, (K - 1,)."""
        levels = np.asarray(self.levels, np.float32)
        return (levels[:-1] + levels[1:]) / np.float32(2)

    @property
    def reach(self) -> tuple[float, float]:
        """The interval of code units that a block can fill on its own grid; closes the two end cells.

        An absmax format reaches exactly `statistic / scale` on both sides, whatever its last level. A zero
        point is rounded, so a range format can overhang its end levels by half a step.
        """
        if self.statistic == "range":
            return self.levels[0] - 0.5, self.levels[-1] + 0.5
        return -self.divisor, self.divisor


NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
FP4_TWELFTHS = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)  # by code; codes 8-15 carry the sign
FP4_ORDER = (11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3)  # ascending; 8 is the minus zero


def symmetric_int(
    name: str, bits: int, block: BlockKind, block_size: int | None, *, rule: str = ""
) -> Format:
    """Integers around 0, scale `absmax / (2^(b-1) - 1)`, or `absmax / 2^(b-1)` with rule "paper".

    The paper's rule (arXiv 2410.16454, eq. 2) has no clip. Its top code would need a bit more, so it is clipped
    here as every implementation does: the levels are -2^(b-1) … 2^(b-1) - 1.
    """
    top = 2 ** (bits - 1)
    low, high, divisor = (-top, top - 1, top) if rule == "paper" else (1 - top, top - 1, top - 1)
    return _integers(name, bits, (low, high), block, block_size, "absmax", divisor)


def asymmetric_int(
    name: str, bits: int, block: BlockKind, block_size: int | None, *, rule: str = ""
) -> Format:
    """Integers 0 … 2^b - 1 with a zero point, scale `(max(w, 0) - min(w, 0)) / (2^b - 1)`."""
    top = 2**bits - 1
    return _integers(name, bits, (0, top), block, block_size, "range", top)


def _integers(
    name: str,
    bits: int,
    ends: tuple[int, int],
    block: BlockKind,
    block_size: int | None,
    statistic: Literal["absmax", "range"],
    divisor: int,
) -> Format:
    codes = tuple(range(ends[0], ends[1] + 1))
    return Format(
        name=name, bits=bits, levels=tuple(float(c) for c in codes), labels=codes, block=block,
        block_size=block_size, statistic=statistic, divisor=float(divisor), arithmetic="divide",
        floor=0.0, unit=1.0, rounding="half-even", zero_point=statistic == "range",
        source="arXiv 2410.16454 eq. 2" if name.endswith("paper") else "round to nearest, float32",
    )  # fmt: skip


def _codebook(name: str, levels: tuple[float, ...], labels: tuple[int, ...], size: int) -> Format:
    return Format(
        name=name, bits=4, levels=levels, labels=labels, block="flat", block_size=size,
        statistic="absmax", divisor=1.0, arithmetic="multiply", floor=1e-38, unit=1.0,
        rounding="half-lower", zero_point=False, source="bitsandbytes 0.50.2, CPU",
    )  # fmt: skip


def nf4(name: str, block_size: int) -> Format:
    """NormalFloat4 of QLoRA (arXiv 2305.14314), as bitsandbytes stores it."""
    return _codebook(name, NF4_LEVELS, tuple(range(16)), block_size)


def fp4(name: str, block_size: int) -> Format:
    """FP4 of bitsandbytes, a float with one mantissa bit; two codes are zero (`transformers`' 4-bit default)."""
    table = [*FP4_TWELFTHS, *(-x for x in FP4_TWELFTHS)]
    twelfth = np.float32(12)
    levels = tuple(float(np.float32(table[code]) / twelfth) + 0.0 for code in FP4_ORDER)
    return _codebook(name, levels, FP4_ORDER, block_size)


def llm_int8(name: str) -> Format:
    """The weights of LLM.int8 (arXiv 2208.07339): int8 rows, by reciprocal; outlier activations are not modelled."""
    codes = tuple(range(-127, 128))
    return Format(
        name=name, bits=8, levels=tuple(float(c) for c in codes), labels=codes, block="row",
        block_size=None, statistic="absmax", divisor=127.0, arithmetic="multiply", floor=0.0,
        unit=7.874015718698502e-3, rounding="half-even", zero_point=False,
        source="bitsandbytes 0.50.2, CPU",
    )  # fmt: skip


INTEGER_RULES: Mapping[str, Callable[..., Format]] = {
    "": symmetric_int,
    "asym": asymmetric_int,
    "paper": symmetric_int,
}
CODEBOOKS: Mapping[str, Callable[[str, int], Format]] = {"nf4": nf4, "fp4": fp4}
FAMILIES: Mapping[str, str] = {
    "int{2..8}-{tensor|row|gN}": "symmetric integers, scale = absmax / (2^(b-1) - 1)",
    "int{2..8}-{tensor|row|gN}-asym": "integers with a zero point, scale = range / (2^b - 1)",
    "int{2..8}-{tensor|row|gN}-paper": "arXiv 2410.16454 eq. 2: scale = absmax / 2^(b-1), clipped",
    "nf4-bN": "NormalFloat4, flat blocks of N, bitsandbytes",
    "fp4-bN": "FP4, flat blocks of N, bitsandbytes (transformers' 4-bit default)",
    "llmint8-row": "rows of LLM.int8, bitsandbytes",
}
_INTEGER = re.compile(r"int([2-8])-(tensor|row|g([1-9]\d*))(?:-(asym|paper))?")
_CODEBOOK = re.compile(r"(nf4|fp4)-b([1-9]\d*)")


def format_named(name: str) -> Format:
    """The format called `name`.

    Raises:
        ValueError: no family has that name.
    """
    if match := _INTEGER.fullmatch(name):
        size = int(match[3]) if match[3] else None
        block: BlockKind = "group" if size else ("row" if match[2] == "row" else "tensor")
        rule = match[4] or ""
        return INTEGER_RULES[rule](name, int(match[1]), block, size, rule=rule)
    if match := _CODEBOOK.fullmatch(name):
        return CODEBOOKS[match[1]](name, int(match[2]))
    if name == "llmint8-row":
        return llm_int8(name)
    raise ValueError(f"format must be one of {', '.join(FAMILIES)}, got format={name!r}")
