"""Quantizers of a model's linear layers: our formats, and real libraries by prefix.

A quantized model here computes with the dequantized weights in float32, so a result speaks of the weights alone, not of
a kernel's activations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from unforgotten.experiments.quantizers.bitsandbytes import bitsandbytes_values
from unforgotten.experiments.quantizers.quantizer import State
from unforgotten.experiments.quantizers.torch_path import encode_tensor
from unforgotten.theory.formats.names import format_named


def own_values(w: Tensor, name: str) -> Tensor:
    """Q(w) by our torch path."""
    return encode_tensor(w, format_named(name))[1]


QUANTIZERS: Mapping[str, Callable[[Tensor, str], Tensor]] = {"": own_values, "bnb": bitsandbytes_values}


def quantize_state(state: State, names: list[str], format_name: str) -> State:
    """Return the state with Q(w) in place of the named weights; the others are shared, not copied."""
    prefix, _, name = format_name.rpartition(":")
    try:
        quantizer = QUANTIZERS[prefix]
    except KeyError:
        known = ", ".join(f"{p}:" for p in QUANTIZERS if p)
        raise ValueError(f"back end must be one of {known}, got format={format_name!r}") from None
    return {k: quantizer(v, name).to(v.dtype) if k in set(names) else v for k, v in state.items()}
