"""Formats by bitsandbytes on the CPU: nf4-bN[-dq], fp4-bN[-dq], llmint8-row, a function for each thing that a caller may want.

A run takes `QUANTIZERS`, which takes whole blocks alone; `verification` wraps `values_4bit` and `values_int8` and their codes,
which take any tensor.

    bitsandbytes_values(torch.randn(8, 64), "nf4-b64")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unforgotten.experiments.quantizers.quantizer import by_tensor
from unforgotten.records.extras import need

if TYPE_CHECKING:
    from torch import Tensor

NESTED = "-dq"
"""End of the name of a format whose absmaxes are quantized too."""


def bitsandbytes_values(w: Tensor, name: str) -> Tensor:
    """Return Q(w).

    Raises:
        ValueError: bitsandbytes is missing, or has no such format, or the tensor is no multiple of the block.
    """
    need("unforgotten[quantizers]", "bitsandbytes")
    w = w.detach().float()
    if name == "llmint8-row":
        return values_int8(w)
    kind, size = _kind_and_size(name.removesuffix(NESTED))
    if w.numel() % size:
        raise ValueError(f"bnb:{name} takes whole blocks of {size}, got {w.numel()} weights")
    return values_nested(w, kind, size) if name.endswith(NESTED) else values_4bit(w, kind, size)


def bitsandbytes_codes(w: Tensor, name: str) -> Tensor:
    """Return the codes of w, indices into the format's levels.

    Raises:
        ValueError: bitsandbytes has no such format.
    """
    if name == "llmint8-row":
        return codes_int8(w)
    return codes_4bit(w, *_kind_and_size(name.removesuffix(NESTED)))


def _kind_and_size(name: str) -> tuple[str, int]:
    from unforgotten.theory.formats.names import format_named

    fmt = format_named(name)
    if fmt.block != "flat" or fmt.block_size is None:
        raise ValueError(
            f"format must be nf4-bN, fp4-bN, with -dq or not, or llmint8-row for bitsandbytes, got {name!r}"
        )
    return name.split("-")[0], fmt.block_size


def values_4bit(w: Tensor, kind: str, size: int) -> Tensor:
    """Return Q(w) of NF4 or FP4 by flat blocks, the last of which may be a part of one.

    The library sees and reads rows of one block: with other shapes the AVX-512 dequantizer reads wrong scales.

    Args:
        w: float32 weights.
        kind: "nf4" or "fp4".
        size: weights of a block.
    """
    import torch
    from bitsandbytes import functional

    count = w.numel()
    if count % size == 0:
        rows = w.reshape(-1, size).contiguous()
        packed, state = functional.quantize_4bit(rows, blocksize=size, quant_type=kind)
        return functional.dequantize_4bit(packed, state).reshape(w.shape)
    packed, state = _packed(w, kind, size)
    labels = torch.nn.functional.pad(_nibbles(packed)[:count], (0, -count % size))
    whole = (labels[::2] << 4 | labels[1::2]).reshape(-1, 1)
    state.shape, state.dtype = torch.Size((len(labels) // size, size)), torch.float32
    return functional.dequantize_4bit(whole, state).reshape(-1)[:count].reshape(w.shape)


def values_nested(w: Tensor, kind: str, size: int) -> Tensor:
    """Return Q(w) of NF4 or FP4 with absmaxes quantized to 8 bits; arguments as of `values_4bit`.

    The last block may be a part of one: it is filled with zeros, so that the library sees rows of whole blocks.
    """
    import torch
    from bitsandbytes import functional

    rows = torch.nn.functional.pad(w.reshape(-1), (0, -w.numel() % size)).reshape(-1, size)
    packed, state = functional.quantize_4bit(rows, blocksize=size, quant_type=kind, compress_statistics=True)
    return functional.dequantize_4bit(packed, state).reshape(-1)[: w.numel()].reshape(w.shape)


def codes_4bit(w: Tensor, kind: str, size: int) -> Tensor:
    """Return the codes of NF4 or FP4 by flat blocks, indices into the format's levels; arguments as of `values_4bit`."""
    import numpy as np
    import torch

    from unforgotten.theory.formats.names import format_named

    index = torch.from_numpy(np.argsort(format_named(f"{kind}-b{size}").labels))
    labels = _nibbles(_packed(w, kind, size)[0])[: w.numel()]
    return index[labels.long()].reshape(w.shape)


def _packed(w: Tensor, kind: str, size: int) -> tuple[Tensor, Any]:
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(w.reshape(1, -1), blocksize=size, quant_type=kind)
    return packed, state


def _nibbles(packed: Tensor) -> Tensor:
    import torch

    pairs = packed.reshape(-1)
    return torch.stack([pairs >> 4, pairs & 15], dim=1).ravel()


def values_int8(w: Tensor) -> Tensor:
    """Return Q(w) of the weights of LLM.int8, float32, row by row; activations are not in it."""
    from bitsandbytes import functional

    codes, scales, _ = functional.int8_vectorwise_quant(w.clone())
    return functional.int8_vectorwise_dequant(codes, scales)


def codes_int8(w: Tensor) -> Tensor:
    """Return the codes of the weights of LLM.int8, indices into the format's levels."""
    from bitsandbytes import functional

    codes: Tensor = functional.int8_vectorwise_quant(w.clone())[0]
    return codes.long() + 127


def bitsandbytes_ours(name: str) -> str | None:
    """Return the format of ours with the same values: the same name; None for nested absmaxes, whose mean is the machine's own.

    Raises:
        ValueError: bitsandbytes has no such format.
    """
    if name != "llmint8-row":
        _kind_and_size(name.removesuffix(NESTED))
    return None if name.endswith(NESTED) else name


QUANTIZERS = (
    by_tensor(
        "bnb",
        "quantizers",
        bitsandbytes_values,
        bitsandbytes_codes,
        ours=bitsandbytes_ours,
        formats={
            "{nf4|fp4}-bN[-dq]": "flat blocks of N; -dq: with double quantization, absmaxes in 8 bits",
            "llmint8-row": "rows of LLM.int8, weights alone",
        },
        packages=("bitsandbytes",),
    ),
)
