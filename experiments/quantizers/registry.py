"""Quantizers of a model's linear layers: our formats, and real libraries by prefix.

A quantized model here computes with the dequantized weights in float32, so a result speaks of the weights alone, not of
a kernel's activations.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from unforgotten.experiments.quantizers.torch_path import encode_tensor
from unforgotten.theory.formats.names import format_named

State = dict[str, Tensor]


def linear_names(model: nn.Module) -> list[str]:
    """Return the names of the weights that quantizers touch: of every linear layer but the output head."""
    return sorted(
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] != "lm_head"
    )


def own_values(w: Tensor, name: str) -> Tensor:
    """Q(w) by our torch path."""
    return encode_tensor(w, format_named(name))[1]


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


QUANTIZERS: Mapping[str, Callable[[Tensor, str], Tensor]] = {"": own_values, "bnb": bitsandbytes_values}


def quantize_state(state: State, names: list[str], format_name: str) -> State:
    """Return a model's weights with Q(w) in place of the named ones; the others are shared, not copied."""
    prefix, _, name = format_name.rpartition(":")
    try:
        quantizer = QUANTIZERS[prefix]
    except KeyError:
        known = ", ".join(f"{p}:" for p in QUANTIZERS if p)
        raise ValueError(f"back end must be one of {known}, got format={format_name!r}") from None
    return {k: quantizer(v, name).to(v.dtype) if k in set(names) else v for k, v in state.items()}
