"""Formats by torchao on the CPU: its intx weights, and its int8 weights with inputs quantized by token at run time.

    torchao_values(torch.randn(8, 64), "int4-g64-ao")

`torchao:` is of weights alone; `torchao-dynamic:int8-row-ao` computes as `Int8DynamicActivationInt8WeightConfig` does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from unforgotten.experiments.quantizers.quantizer import Calibration, Quantizer, State, by_tensor
from unforgotten.records.extras import need

if TYPE_CHECKING:
    from torch import Tensor

    from unforgotten.experiments.models.runtime import Layer

REQUIREMENT = "torchao==0.18.0"
DYNAMIC = "int8-row-ao"


def torchao_values(w: Tensor, name: str) -> Tensor:
    """Return Q(w), float32 in the shape of `w`.

    Raises:
        ValueError: torchao is missing, or has no such format, or a row is no multiple of the group.
    """
    values: Tensor = _intx(w, name).dequantize()
    return values


def torchao_codes(w: Tensor, name: str) -> Tensor:
    """Return the codes of w, indices into the format's levels; raises as `torchao_values`."""
    bits, _, _ = _settings(name)
    codes: Tensor = _intx(w, name).qdata.long() + 2 ** (bits - 1)
    return codes


def torchao_ours(name: str) -> str:
    """Return the name of the format of ours with the same values: the same name.

    Raises:
        ValueError: torchao has no such format.
    """
    _settings(name)
    return name


def dynamic_ours(name: str) -> str:
    """Return the name of the format of ours with the same weights: the same name.

    Raises:
        ValueError: it is another than the one that there is.
    """
    if name != DYNAMIC:
        raise ValueError(f"format must be {DYNAMIC} for torchao-dynamic:, got {name!r}")
    return name


def _settings(name: str) -> tuple[int, int | None, bool]:
    match = re.fullmatch(r"int([2-8])-(?:row|g([1-9]\d*))-ao(-asym)?", name)
    if match is None:
        raise ValueError(f"format must be intB-gN-ao or intB-row-ao, with -asym or not, for torchao, got {name!r}")
    return int(match[1]), None if match[2] is None else int(match[2]), match[3] is None


def _intx(w: Tensor, name: str) -> Any:
    bits, size, symmetric = _settings(name)
    need(REQUIREMENT, "torchao")
    if size is not None and w.shape[-1] % size:
        raise ValueError(f"torchao:{name} takes rows of whole groups of {size}, got columns={w.shape[-1]}")
    import torch

    IntxUnpackedToInt8Tensor = import_module("torchao.quantization").IntxUnpackedToInt8Tensor
    MappingType = import_module("torchao.quantization.quant_primitives").MappingType

    kind = MappingType.SYMMETRIC if symmetric else MappingType.ASYMMETRIC
    dtype = getattr(torch, f"int{bits}")
    block = (1, size or w.shape[-1])
    return IntxUnpackedToInt8Tensor.from_hp(w.detach().float(), block, dtype, mapping_type=kind)


def dynamic_layer(w: Tensor) -> Layer:
    """Return torchao's linear layer of these weights, (rows, columns): it quantizes its inputs, each token for itself."""
    import torch
    from torch import nn

    quantization = import_module("torchao.quantization")
    Int8DynamicActivationInt8WeightConfig = quantization.Int8DynamicActivationInt8WeightConfig
    quantize_ = quantization.quantize_

    rows, columns = w.shape
    linear = nn.Linear(columns, rows, bias=False)
    linear.weight = nn.Parameter(w.detach().float().clone(), requires_grad=False)
    quantize_(linear, Int8DynamicActivationInt8WeightConfig())
    weight = linear.weight

    def layer(x: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = torch.nn.functional.linear(x, weight, bias)
        return y

    return layer


def mixed_layer(w: Tensor) -> Layer:
    """Return the layer of weights on no grid whose inputs are quantized as torchao quantizes rows, in float32."""
    from torch import nn

    def layer(x: Tensor, bias: Tensor | None) -> Tensor:
        tokens = torchao_values(x.reshape(-1, x.shape[-1]), DYNAMIC).reshape(x.shape)
        return nn.functional.linear(tokens, w.float(), bias)

    return layer


def dynamic_state(state: State, names: Sequence[str], format_name: str, calibration: Calibration | None) -> State:
    """Return the state with Q(w) in place of the named weights, whose layers quantize their inputs too."""
    from unforgotten.experiments.models.runtime import RuntimeState

    name, touched = dynamic_ours(format_name), set(names)
    need(REQUIREMENT, "torchao")
    return RuntimeState(
        state,
        lambda key: torchao_values(state[key], name).to(state[key].dtype) if key in touched else state[key],
        lambda key: dynamic_layer(state[key]) if key in touched else None,
        lambda _, w: mixed_layer(w),
    )


QUANTIZERS = (
    by_tensor(
        "torchao",
        None,
        torchao_values,
        torchao_codes,
        ours=torchao_ours,
        formats={"int{2..8}-{row|gN}-ao[-asym]": "integers of torchao's intx"},
        packages=(REQUIREMENT,),
    ),
    Quantizer(
        "torchao-dynamic",
        None,
        dynamic_state,
        ours=dynamic_ours,
        formats={DYNAMIC: "int8 weights and, while the model runs, int8 inputs of linear layers by token"},
        packages=(REQUIREMENT,),
    ),
)
