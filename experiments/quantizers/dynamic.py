"""Dynamic quantization: weights by row and the inputs of linear layers by token, to integers: `dynamic:int8-row`.

Inputs have the bits of the weights, or others: `dynamic:int4-row-a8` has weights of 4 bits and inputs of 8.

An output is the exact sum of products of codes, rounded to float32 once, times the scale of the token, times the scale of
the row, plus the bias, each rounded to float32. Weights and tokens have the scales of the format, absmax / (2^(b-1) - 1).
Inputs are quantized while the model runs, by forward hooks, see `models/runtime.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from unforgotten.experiments.quantizers.quantizer import Calibration, Quantizer, State
from unforgotten.theory.formats.names import format_named

if TYPE_CHECKING:
    from torch import Tensor

    from unforgotten.experiments.models.runtime import Layer

EXACT = 1024
"""Columns whose products of two codes, below 2^14 each, have sums below 2^24: exact in float32 in any order."""


def row_format(name: str, quantizer: str = "dynamic") -> str:
    """Return the name of the format that weights and tokens are quantized to: the same name.

    Args:
        name: name of the format.
        quantizer: name of the quantizer that asks.

    Raises:
        ValueError: it is none of symmetric integers by row.
    """
    if not re.fullmatch(r"int[2-8]-row", name):
        raise ValueError(f"format must be int2-row to int8-row for {quantizer}:, got {name!r}")
    return name


def row_formats(name: str) -> tuple[str, str]:
    """Return the formats of weights and of tokens: `int4-row-a8` has int4-row and int8-row.

    Raises:
        ValueError: weights or tokens are no symmetric integers of 2 to 8 bits by row.
    """
    found = re.fullmatch(r"(?P<weights>int[2-8]-row)(-a(?P<bits>[2-8]))?", name)
    if found is None:
        raise ValueError(
            f"format must be int2-row to int8-row, or one with -a2 to -a8 at its end, for dynamic:, got {name!r}"
        )
    return found["weights"], f"int{found['bits']}-row" if found["bits"] else found["weights"]


def integer_rows(x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return codes, float32 (rows, columns), whole numbers around 0, and scales, float32 (rows, 1).

    Args:
        x: matrix of weights or of tokens, (rows, columns).
        name: name of the format.

    Raises:
        ValueError: a number is not finite.
    """
    from unforgotten.experiments.quantizers.torch_path import encode_tensor, fit_weights

    fmt = format_named(name)
    return encode_tensor(x, fmt)[0].float() + fmt.levels[0], fit_weights(x, fmt).read_scale[:, :1]


def exact_products(a: Tensor, b: Tensor) -> Tensor:
    """Return a b', float64, exact for codes of at most 8 bits.

    Args:
        a: codes, float32 (tokens, columns).
        b: codes, float32 (rows, columns).
    """
    import torch

    total = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    for start in range(0, a.shape[1], EXACT):
        total += a[:, start : start + EXACT] @ b[:, start : start + EXACT].T
    return total


def integer_layer(w: Tensor, name: str, of_tokens: str | None = None) -> Layer:
    """Return the layer that multiplies codes of the weights, (rows, columns), with codes of the tokens.

    Args:
        w: weights, (rows, columns).
        name: name of their format.
        of_tokens: name of that of the tokens; None for the same.
    """
    import torch

    codes, scales = integer_rows(w, name)
    stored = codes.to(torch.int8)

    def layer(x: Tensor, bias: Tensor | None) -> Tensor:
        tokens, token_scales = integer_rows(x.reshape(-1, x.shape[-1]), of_tokens or name)
        y = exact_products(tokens, stored.float()).float() * token_scales * scales.T
        y = y if bias is None else y + bias
        return y.reshape(*x.shape[:-1], len(w))

    return layer


def mixed_layer(w: Tensor, name: str) -> Layer:
    """Return the layer that multiplies weights on no grid with codes of the tokens, in float32."""

    def layer(x: Tensor, bias: Tensor | None) -> Tensor:
        tokens, token_scales = integer_rows(x.reshape(-1, x.shape[-1]), name)
        y = tokens @ w.float().T * token_scales
        y = y if bias is None else y + bias
        return y.reshape(*x.shape[:-1], len(w))

    return layer


def dynamic_state(state: State, names: Sequence[str], format_name: str, calibration: Calibration | None) -> State:
    """Return the state with Q(w) in place of the named weights, whose layers quantize their inputs too."""
    from unforgotten.experiments.models.runtime import RuntimeState
    from unforgotten.experiments.quantizers.own import own_state

    (name, of_tokens), touched = row_formats(format_name), set(names)
    quantized = own_state(state, names, name, None)
    return RuntimeState(
        state,
        lambda key: quantized[key],
        lambda key: integer_layer(state[key], name, of_tokens) if key in touched else None,
        lambda _, w: mixed_layer(w, of_tokens),
    )


QUANTIZERS = (
    Quantizer(
        "dynamic",
        None,
        dynamic_state,
        ours=lambda name: row_formats(name)[0],
        formats={
            "int{2..8}-row": "weights by row and, while the model runs, inputs of linear layers by token",
            "int{2..8}-row-a{2..8}": "the same, inputs in other bits than weights",
        },
    ),
)
