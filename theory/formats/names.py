"""Every quantization format by name. What a format is: `unforgotten.theory.formats.description`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from unforgotten.theory.formats.codebooks import (
    CODEBOOKS,
    MICROSCALED,
    double_quantized,
    fp8,
    fp8_cast,
    fp8_tile,
    nvfp4,
)
from unforgotten.theory.formats.description import BlockKind, Format
from unforgotten.theory.formats.gguf import FILES, GGUF
from unforgotten.theory.formats.integers import HQQ_RULES, INTEGER_RULES, dithered_int, llm_int8

__all__ = ["FAMILIES", "MIXES", "PATTERNS", "Format", "deterministic_format_named", "format_named"]

FAMILIES: Mapping[str, str] = {
    "int{2..8}-{tensor|row|gN}": "symmetric integers, scale = absmax / (2^(b-1) - 1)",
    "int{2..8}-{tensor|row|gN}-dither[S]": "symmetric integers, rounded at random without bias; S: seed, 0 if left out",
    "int{2..8}-{tensor|row|gN}-asym": "integers with a zero point, scale = range / (2^b - 1)",
    "int{2..8}-{tensor|row|gN}-paper": "arXiv 2410.16454 eq. 2: scale = absmax / 2^(b-1), clipped",
    "int{2..8}-{tensor|row|gN}-ct[-asym]": "integers of compressed-tensors (llm-compressor, vLLM)",
    "int{2..8}-{tensor|row|gN}-ao[-asym]": "integers of torchao's intx",
    "hqq{2..8}-gN[-opt]": "HQQ: a zero point that is not rounded; -opt: from its proximal solver",
    "nf4-bN": "NormalFloat4, flat blocks of N, bitsandbytes",
    "fp4-bN": "FP4, flat blocks of N, bitsandbytes (transformers' 4-bit default)",
    "{nf4|fp4}-bN-dq": "the same with double quantization: absmaxes in 8 bits less their mean, which is summed exactly here",
    "llmint8-row": "rows of LLM.int8, bitsandbytes",
    "fp8-{tensor|row|gN}": "FP8 E4M3, scale = absmax / 448",
    "fp8-bNxM": "FP8 E4M3, tiles of N rows and M columns, scale = absmax / 448 (DeepSeek-V3 and FP8_BLOCK: fp8-b128x128)",
    "fp8-cast": "FP8 E4M3 without a scale",
    "mxfp4-bN[-ct]": "MXFP4, groups of N with a power of two, 0 and minus zero one code; -ct: scaled as compressed-tensors does",
    "nvfp4": "NVFP4, groups of 16 with an E4M3 scale, 0 and minus zero one code, compressed-tensors",
    "q4_0, q4_1, q5_0, q5_1, q8_0": "GGUF, blocks of 32, float16 scales",
    "q3_k, q4_k, q5_k, q6_k": "GGUF, super-blocks of 256, searched scales",
}

MIXES: Mapping[str, str] = {
    ", ".join(
        f"gguf:{name}" for name in FILES
    ): "a whole file of llama.cpp without an importance matrix: each matrix in the type "
    "that llama-quantize gives it, embedding and head too; for an audit"
}
"""Names that stand for what a tool does to a whole model, see `unforgotten.audit.mixes`."""


def _blocks(text: str) -> tuple[BlockKind, int | None]:
    kinds: Mapping[str, BlockKind] = {"tensor": "tensor", "row": "row"}
    return (kinds[text], None) if text in kinds else ("group", int(text[1:]))


# A pattern and what builds a format from its match; the match's whole text is the name.
PATTERNS: Mapping[str, Callable[[re.Match[str]], Format]] = {
    r"int([2-8])-(tensor|row|g[1-9]\d*)(?:-(asym|paper|ct|ct-asym|ao|ao-asym))?": (
        lambda m: INTEGER_RULES[m[3] or ""](m[0], int(m[1]), *_blocks(m[2]))
    ),
    r"int([2-8])-(tensor|row|g[1-9]\d*)-dither([1-9]\d{0,8})?": (
        lambda m: dithered_int(m[0], int(m[1]), *_blocks(m[2]), int(m[3] or 0))
    ),
    r"hqq([2-8])-(g[1-9]\d*)(?:-(opt))?": (lambda m: HQQ_RULES[m[3] or ""](m[0], int(m[1]), *_blocks(m[2]))),
    r"(nf4|fp4)-b([1-9]\d*)": lambda m: CODEBOOKS[m[1]](m[0], int(m[2])),
    r"((nf4|fp4)-b([1-9]\d*))-dq": lambda m: double_quantized(CODEBOOKS[m[2]](m[1], int(m[3]))),
    r"llmint8-row": lambda m: llm_int8(m[0]),
    r"fp8-(tensor|row|g[1-9]\d*)": lambda m: fp8(m[0], *_blocks(m[1])),
    r"fp8-b([1-9]\d*)x([1-9]\d*)": lambda m: fp8_tile(m[0], int(m[1]), int(m[2])),
    r"fp8-cast": lambda m: fp8_cast(m[0]),
    r"mxfp4-b([1-9]\d*)(?:-(ct))?": lambda m: MICROSCALED[m[2] or ""](m[0], int(m[1])),
    r"nvfp4": lambda m: nvfp4(m[0]),
    "|".join(GGUF): lambda m: GGUF[m[0]](m[0]),
}


def deterministic_format_named(name: str) -> Format:
    """Return the format called `name`, for what is made for rounding to nearest alone: the kernel of the audit.

    Raises:
        ValueError: no family has that name, or the format is dithered.
    """
    fmt = format_named(name)
    if fmt.dithered:
        raise ValueError(f"format must round to nearest here, got the dithered format={name!r}")
    return fmt


def format_named(name: str) -> Format:
    """Return the format called `name`.

    Raises:
        ValueError: no family has that name.
    """
    for pattern, build in PATTERNS.items():
        if match := re.fullmatch(pattern, name):
            return build(match)
    from unforgotten.theory.formats.nearest import nearest

    rule = f"format must be one of {', '.join(FAMILIES)}"
    raise ValueError(f"{rule}, got format={name!r}; the nearest is {nearest(name)!r}")
