"""The torch path: the same format descriptions, applied to a model's linear layers; and real libraries by prefix.

A quantized model here computes with the dequantized weights in float32, so a result speaks of the weights alone, not of
a kernel's activations.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from unforgotten.theory.formats import Format, format_named

State = dict[str, Tensor]


def linear_names(model: nn.Module) -> list[str]:
    """The weights that quantizers touch: of every linear layer but the output head."""
    return sorted(
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] != "lm_head"
    )


def _blocks(w: Tensor, fmt: Format) -> Tensor:
    w = w.detach().float()
    w = w.reshape(1, -1) if fmt.block in ("tensor", "flat") else w.reshape(-1, w.shape[-1])
    if fmt.block_size is None:
        return w
    return nn.functional.pad(w, (0, -w.shape[1] % fmt.block_size)).reshape(-1, fmt.block_size)


def _unblock(blocks: Tensor, shape: torch.Size, fmt: Format) -> Tensor:
    if fmt.block_size is None:
        return blocks.reshape(shape)
    width = shape.numel() if fmt.block == "flat" else shape[-1]
    padded = -(-width // fmt.block_size) * fmt.block_size
    return blocks.reshape(-1, padded)[:, :width].reshape(shape)


def encode_tensor(w: Tensor, fmt: Format) -> tuple[Tensor, Tensor]:
    """Codes (indices into `fmt.levels`, int64) and values (float32), both in the shape of `w`.

    Raises:
        ValueError: a weight is not finite, or a range overflows float32.
    """
    blocks = _blocks(w, fmt)
    if not torch.isfinite(blocks).all():
        raise ValueError(f"weights must be finite to be quantized to {fmt.name}, got nan or inf")
    divisor = torch.tensor(fmt.divisor, dtype=torch.float32)
    if fmt.statistic == "absmax":
        absmax = blocks.abs().amax(1, keepdim=True)
        if fmt.block == "flat" and w.numel() % blocks.shape[1]:
            absmax[-1] = absmax[-1].clamp(min=fmt.floor)
        scale = absmax / divisor if fmt.arithmetic == "divide" else absmax
        zero = torch.zeros_like(scale)
    else:
        low, high = (
            blocks.amin(1, keepdim=True).clamp(max=0),
            blocks.amax(1, keepdim=True).clamp(min=0),
        )
        scale = (high - low) / divisor
        zero = torch.nan_to_num(torch.round(-low / scale), nan=0.0, posinf=0.0)
        zero = zero.clamp(max=fmt.levels[-1])
    if not torch.isfinite(scale).all():
        raise ValueError(f"the range of a block must be a finite float32 in {fmt.name}, got inf")
    ratio = _ratio(blocks, scale, fmt, w.numel())
    levels = torch.tensor(fmt.levels, dtype=torch.float32)
    if fmt.rounding == "half-lower":
        codes = torch.bucketize(ratio, torch.from_numpy(fmt.thresholds))
    else:
        whole = (torch.round(ratio) + zero).clamp(fmt.levels[0], fmt.levels[-1])
        codes = (whole - fmt.levels[0]).long()
    values = (levels[codes] - zero) * scale
    if fmt.unit != 1.0:
        values = values * fmt.unit
    return _unblock(codes, w.shape, fmt), _unblock(values, w.shape, fmt)


def _ratio(blocks: Tensor, scale: Tensor, fmt: Format, count: int) -> Tensor:
    if fmt.arithmetic == "divide":
        return torch.where(scale > 0, blocks / scale, 0.0)
    floored = scale.clamp(min=fmt.floor) if fmt.floor else scale
    reciprocal = floored.reciprocal() * fmt.divisor
    ratio = blocks * reciprocal
    if fmt.block == "flat" and count % blocks.shape[1]:
        ratio[-1] = blocks[-1] / floored[-1]
    return torch.where(torch.isfinite(reciprocal), ratio, 0.0)


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
        raise ValueError(
            f"format bnb:{name} needs bitsandbytes: pip install 'unforgotten[quantizers]'"
        )
    from bitsandbytes import functional

    fmt, w = format_named(name), w.detach().float()
    if name == "llmint8-row":
        codes, scales, _ = functional.int8_vectorwise_quant(w.clone())
        return functional.int8_vectorwise_dequant(codes, scales)
    if fmt.block != "flat" or fmt.block_size is None:
        raise ValueError(
            f"format must be nf4-bN, fp4-bN or llmint8-row for bitsandbytes, got {name!r}"
        )
    if w.numel() % fmt.block_size:
        raise ValueError(
            f"bnb:{name} takes whole blocks of {fmt.block_size}, got {w.numel()} weights"
        )
    rows = w.reshape(-1, fmt.block_size).contiguous()
    packed, state = functional.quantize_4bit(
        rows, blocksize=fmt.block_size, quant_type=name.split("-")[0]
    )
    return functional.dequantize_4bit(packed, state).reshape(w.shape)


QUANTIZERS: Mapping[str, Callable[[Tensor, str], Tensor]] = {
    "": own_values,
    "bnb": bitsandbytes_values,
}


def quantize_state(state: State, names: list[str], format_name: str) -> State:
    """The state with Q(w) in place of the named weights; the others are shared, not copied."""
    prefix, _, name = format_name.rpartition(":")
    try:
        quantizer = QUANTIZERS[prefix]
    except KeyError:
        known = ", ".join(f"{p}:" for p in QUANTIZERS if p)
        raise ValueError(f"back end must be one of {known}, got format={format_name!r}") from None
    return {k: quantizer(v, name).to(v.dtype) if k in set(names) else v for k, v in state.items()}
