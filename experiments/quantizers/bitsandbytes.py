"""Formats by bitsandbytes on the CPU: NF4, FP4 and LLM.int8."""

from __future__ import annotations

import importlib.util

from torch import Tensor

from unforgotten.theory.formats.names import format_named


def bitsandbytes_values(w: Tensor, name: str) -> Tensor:
    """Q(w) by bitsandbytes on the CPU: nf4-bN, fp4-bN, llmint8-row.

    The weight goes in as rows of one block: with other shapes the AVX-512 dequantizer reads wrong scales.

    Raises:
        ValueError: bitsandbytes is missing, or has no such format, or the tensor is no multiple of the block.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"format bnb:{name} needs bitsandbytes: pip install 'unforgotten[quantizers]'")
    from bitsandbytes import functional

    fmt, w = format_named(name), w.detach().float()
    if name == "llmint8-row":
        codes, scales, _ = functional.int8_vectorwise_quant(w.clone())
        return functional.int8_vectorwise_dequant(codes, scales)
    if fmt.block != "flat" or fmt.block_size is None:
        raise ValueError(f"format must be nf4-bN, fp4-bN or llmint8-row for bitsandbytes, got {name!r}")
    if w.numel() % fmt.block_size:
        raise ValueError(f"bnb:{name} takes whole blocks of {fmt.block_size}, got {w.numel()} weights")
    rows = w.reshape(-1, fmt.block_size).contiguous()
    packed, state = functional.quantize_4bit(rows, blocksize=fmt.block_size, quant_type=name.split("-")[0])
    return functional.dequantize_4bit(packed, state).reshape(w.shape)
