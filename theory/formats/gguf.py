"""The formats of GGUF: blocks of 32 neighbours of a row, and super-blocks of 256 (k-quants).

Blocks have a float16 scale, and sometimes a float16 minimum: codes are made with the float32 parameters and read with
the stored ones. In a super-block every sub-block has a scale and perhaps a minimum, found by a search and rounded
(`unforgotten.theory.formats.kquants`); codes are made with the rounded ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from unforgotten.theory.formats.description import Format, Rounding

BLOCK, SUPER_BLOCK = 32, 256
SOURCE = "ggml-quants.c as read in gguf 0.19.0"


def q_0(name: str, bits: int) -> Format:
    """Describe Q4_0, Q5_0: scale `signed absmax / -2^(b-1)`: the largest magnitude has the code 0; half goes up."""
    top = 2 ** (bits - 1)
    labels = tuple(range(2 * top))
    return _gguf(name, bits, labels, "signed-absmax", -float(top), "half-up", offset=top)


def q_1(name: str, bits: int) -> Format:
    """Describe Q4_1, Q5_1: `(w - min) / scale`, scale `(max - min) / (2^b - 1)`, not widened to contain 0."""
    labels = tuple(range(2**bits))
    return _gguf(name, bits, labels, "min-max", float(2**bits - 1), "half-up", offset=0)


def q8_0(name: str, bits: int) -> Format:
    """Describe Q8_0: scale `absmax / 127`, half is rounded away from 0."""
    return _gguf(name, bits, tuple(range(-127, 128)), "absmax", 127.0, "half-away", offset=0)


def q3_k(name: str) -> Format:
    """Describe Q3_K: signed 6-bit scales of 16 sub-blocks of 16, codes -4 … 3."""
    return _k_quant(q_0(name, 3), "q3_k")


def q4_k(name: str) -> Format:
    """Describe Q4_K: `(w - min) / scale`, 6-bit scales and minima of 8 sub-blocks of 32."""
    return _k_quant(q_1(name, 4), "q4_k")


def q5_k(name: str) -> Format:
    """Describe Q5_K: as Q4_K, with 32 codes."""
    return _k_quant(q_1(name, 5), "q5_k")


def q6_k(name: str) -> Format:
    """Describe Q6_K: signed 8-bit scales of 16 sub-blocks of 16, codes -32 … 31."""
    return _k_quant(q_0(name, 6), "q6_k")


def _k_quant(fmt: Format, search: str) -> Format:
    return replace(
        fmt,
        block_size=SUPER_BLOCK,
        statistic=search,
        arithmetic="divide",
        rounding="half-even",
        storage="float32",
        source="ggml 0.25.3",
    )


def _gguf(
    name: str, bits: int, labels: tuple[int, ...], statistic: str, divisor: float, rounding: Rounding, *, offset: int
) -> Format:
    return Format(
        name=name,
        bits=bits,
        levels=tuple(float(k - offset) for k in labels),
        labels=labels,
        block="group",
        block_size=BLOCK,
        statistic=statistic,
        divisor=divisor,
        arithmetic="reciprocal",
        floor=0.0,
        unit=1.0,
        rounding=rounding,
        zero="minimum" if statistic == "min-max" else "none",
        source=SOURCE,
        storage="float16",
        whole_blocks=True,
    )


GGUF: Mapping[str, Callable[[str], Format]] = {
    "q4_0": lambda name: q_0(name, 4),
    "q5_0": lambda name: q_0(name, 5),
    "q4_1": lambda name: q_1(name, 4),
    "q5_1": lambda name: q_1(name, 5),
    "q8_0": lambda name: q8_0(name, 8),
    "q3_k": q3_k,
    "q4_k": q4_k,
    "q5_k": q5_k,
    "q6_k": q6_k,
}
FALLBACKS: Mapping[str, str] = {"q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
"""Type of super-blocks -> what llama-quantize takes for rows that are no multiple of 256 (float16 if not of 32 either)."""


FILES: Mapping[str, str] = {
    **{name: name for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q6_K")},
    **{f"Q3_K_{size}": "Q3_K" for size in "SML"},
    **{f"{name}_{size}": name for name in ("Q4_K", "Q5_K") for size in "SM"},
}
"""Type of a file of llama.cpp -> type of its matrices that no rule of its mix gives another."""


def fallback_of(name: str, columns: int) -> str | None:
    """Return the type that llama-quantize takes in place of one whose super-blocks do not fit the rows; None if they do."""
    if name not in FALLBACKS or columns % SUPER_BLOCK == 0:
        return None
    return FALLBACKS[name] if columns % BLOCK == 0 else "float16"
