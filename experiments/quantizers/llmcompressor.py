"""GPTQ by llm-compressor on the CPU, layer by layer: `llmcompressor-gptq:int4-g128-ct`.

Columns are rounded in the order of falling diagonal of H ("weight" activation ordering), on scales of the weights as they
were, with the library's damping of 0.01. H is summed in float64 and rounded to float32, in which the library computes.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING

from unforgotten.experiments.quantizers.calibrated import by_layer
from unforgotten.experiments.quantizers.compressed_tensors import ct_values, fitted
from unforgotten.theory.formats.names import Format

if TYPE_CHECKING:
    from torch import Tensor

    from unforgotten.experiments.models.layer_inputs import Inputs

REQUIREMENT = "llmcompressor==0.14.0.1"


def grouped(name: str) -> None:
    """Take integers of compressed-tensors by group.

    Raises:
        ValueError: the format is another.
    """
    if not re.fullmatch(r"int[2-8]-g[1-9]\d*-ct(-asym)?", name):
        raise ValueError(f"format must be intB-gN-ct, with -asym or not, for llmcompressor-gptq, got {name!r}")


def library_values(w: Tensor, hessian: Tensor, fmt: Format) -> Tensor:
    """Return Q(w), float32 in the shape of `w`.

    Args:
        w: weights, float32 (rows, columns).
        hessian: matrix H, float64 (columns, columns), not damped; where it has no Cholesky factor after damping, the library
            rounds to nearest.
        fmt: integers of compressed-tensors by group.

    Raises:
        ValueError: a row is no multiple of the group.
    """
    quantize_weight = import_module("llmcompressor.modifiers.gptq.gptq_quantize").quantize_weight

    scale, zero, args = fitted(w, fmt)
    args.actorder = "weight"
    values: Tensor = quantize_weight(w[None].clone(), hessian.float()[None], scale[None], zero[None], None, args)[0][0]
    return values


def _rule(w: Tensor, inputs: Inputs, fmt: Format) -> Tensor:
    return library_values(w, inputs.hessian, fmt) if inputs.tokens else ct_values(w, fmt.name)


QUANTIZERS = by_layer(
    "llmcompressor-gptq",
    _rule,
    {"int{2..8}-gN-ct[-asym]": "GPTQ on integers of compressed-tensors"},
    takes=grouped,
    packages=(REQUIREMENT,),
)
