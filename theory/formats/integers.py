"""Uniform integer formats: round to nearest, and the grids of compressed-tensors, torchao and HQQ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from unforgotten.theory.formats.description import BlockKind, Format

FLOAT32_EPS = 2.0**-23
FLOAT32_TINY = 2.0**-126  # the smallest normal number


def symmetric_int(name: str, bits: int, block: BlockKind, block_size: int | None) -> Format:
    """Describe integers around 0, scale `absmax / (2^(b-1) - 1)`."""
    top = 2 ** (bits - 1) - 1
    return _integers(name, bits, (-top, top), block, block_size, divisor=float(top))


def paper_int(name: str, bits: int, block: BlockKind, block_size: int | None) -> Format:
    """Describe integers -2^(b-1) … 2^(b-1) - 1, scale `absmax / 2^(b-1)`.

    The paper's rule (arXiv 2410.16454, eq. 2) has no clip. Its top code would need a bit more, so it is clipped here
    as every implementation does.
    """
    top = 2 ** (bits - 1)
    fmt = _integers(name, bits, (-top, top - 1), block, block_size, divisor=float(top))
    return replace(fmt, source="arXiv 2410.16454 eq. 2")


def asymmetric_int(name: str, bits: int, block: BlockKind, block_size: int | None) -> Format:
    """Describe integers 0 … 2^b - 1 with a zero point, scale `(max(w, 0) - min(w, 0)) / (2^b - 1)`."""
    top = 2**bits - 1
    fmt = _integers(name, bits, (0, top), block, block_size, divisor=float(top))
    return replace(fmt, statistic="range", zero="whole")


def dithered_int(name: str, bits: int, block: BlockKind, block_size: int | None, seed: int) -> Format:
    """Return `symmetric_int` with stochastic rounding: up with the probability of the fraction, so without bias (T19)."""
    fmt = symmetric_int(name, bits, block, block_size)
    return replace(fmt, rounding="dither", seed=seed, source="T19; rounding as torchao 0.18.0, quantized training")


def compressed_tensors_int(name: str, bits: int, block: BlockKind, block_size: int | None) -> Format:
    """Describe integers -2^(b-1) … 2^(b-1) - 1, scale `absmax / ((2^b - 1) / 2)`: absmax is not clipped."""
    fmt = _half_step(name, bits, block, block_size)
    return replace(fmt, zero_first=True, empty_scale=FLOAT32_EPS, source="compressed-tensors 0.19.0")


def compressed_tensors_asymmetric_int(name: str, bits: int, block: BlockKind, block_size: int | None) -> Format:
    """Return compressed-tensors' integers with a zero point, which is added before the code is rounded."""
    fmt = compressed_tensors_int(name, bits, block, block_size)
    return replace(fmt, statistic="range", zero="whole", divisor=float(2**bits - 1))


def torchao_int(name: str, bits: int, block: BlockKind, block_size: int | None) -> Format:
    """Return torchao's integers: weights times the reciprocal of the scale `absmax / ((2^b - 1) / 2)` >= 2^-126."""
    fmt = _half_step(name, bits, block, block_size)
    return replace(fmt, arithmetic="reciprocal", least_scale=FLOAT32_TINY, source="torchao 0.18.0, intx")


def torchao_asymmetric_int(name: str, bits: int, block: BlockKind, block_size: int | None) -> Format:
    """Return torchao's integers with a zero point, which is added after the code is rounded."""
    fmt = torchao_int(name, bits, block, block_size)
    return replace(fmt, statistic="range", zero="whole", divisor=float(2**bits - 1))


def hqq_int(name: str, bits: int, block: BlockKind, block_size: int | None) -> Format:
    """Describe integers 0 … 2^b - 1 with a zero point that is not rounded: `w s + z`, `s = (2^b - 1) / (max - min)`."""
    top = 2**bits - 1
    fmt = _integers(name, bits, (0, top), block, block_size, divisor=float(top))
    return replace(
        fmt,
        statistic="hqq",
        arithmetic="inverse",
        zero="float",
        zero_first=True,
        whole_blocks=True,
        source="hqq 0.2.8.post1, axis 1",
    )


def optimized_hqq_int(name: str, bits: int, block: BlockKind, block_size: int | None) -> Format:
    """Describe HQQ with its zero points from the proximal solver (`hqq.proximal_zero`)."""
    return replace(hqq_int(name, bits, block, block_size), statistic="hqq-proximal")


def _half_step(name: str, bits: int, block: BlockKind, block_size: int | None) -> Format:
    top = 2 ** (bits - 1)
    return _integers(name, bits, (-top, top - 1), block, block_size, divisor=top - 0.5)


def _integers(
    name: str, bits: int, ends: tuple[int, int], block: BlockKind, block_size: int | None, *, divisor: float
) -> Format:
    codes = tuple(range(ends[0], ends[1] + 1))
    return Format(
        name=name,
        bits=bits,
        levels=tuple(float(c) for c in codes),
        labels=codes,
        block=block,
        block_size=block_size,
        statistic="absmax",
        divisor=divisor,
        arithmetic="divide",
        floor=0.0,
        unit=1.0,
        rounding="half-even",
        zero="none",
        source="round to nearest, float32",
    )


def llm_int8(name: str) -> Format:
    """Return the format of the weights of LLM.int8 (arXiv 2208.07339): int8 rows, by reciprocal; outliers left out."""
    fmt = symmetric_int(name, 8, "row", None)
    return replace(fmt, arithmetic="multiply", unit=7.874015718698502e-3, source="bitsandbytes 0.50.2, CPU")


INTEGER_RULES: Mapping[str, Callable[[str, int, BlockKind, int | None], Format]] = {
    "": symmetric_int,
    "asym": asymmetric_int,
    "paper": paper_int,
    "ct": compressed_tensors_int,
    "ct-asym": compressed_tensors_asymmetric_int,
    "ao": torchao_int,
    "ao-asym": torchao_asymmetric_int,
}
HQQ_RULES: Mapping[str, Callable[[str, int, BlockKind, int | None], Format]] = {"": hqq_int, "opt": optimized_hqq_int}
