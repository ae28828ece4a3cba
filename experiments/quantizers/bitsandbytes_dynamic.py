"""LLM.int8 of bitsandbytes as it runs: int8 weights and, by token, int8 inputs but for outlier columns (arXiv 2208.07339).

Weights are rounded to float16 before they are quantized, as `Linear8bitLt` does, and so are inputs. A column of the inputs
with a magnitude of THRESHOLD or more is multiplied with dequantized weights instead. `bnb-dynamic:llmint8-row`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from unforgotten.experiments.quantizers.quantizer import Calibration, Quantizer, State
from unforgotten.records.extras import need

if TYPE_CHECKING:
    from torch import Tensor

    from unforgotten.experiments.models.runtime import Layer

FORMAT = "llmint8-row"
THRESHOLD = 6.0  # Transformers' default


def checked(name: str) -> None:
    """Return None: weights are rounded to float16 first, as those of no format of ours.

    Raises:
        ValueError: it is another than the one that there is.
    """
    if name != FORMAT:
        raise ValueError(f"format must be {FORMAT} for bnb-dynamic:, got {name!r}")


def linear_layer(w: Tensor) -> Layer:
    """Return the library's product with these weights, (rows, columns), whose magnitudes are below 65520."""
    from bitsandbytes import functional
    from bitsandbytes.autograd._functions import MatmulLtState, matmul

    codes, scales, _ = functional.int8_vectorwise_quant(w.detach().half())

    def layer(x: Tensor, bias: Tensor | None) -> Tensor:
        state = MatmulLtState()
        state.CB, state.SCB, state.threshold, state.has_fp16_weights = codes, scales, THRESHOLD, False
        y: Tensor = matmul(x, codes, bias=bias, state=state)
        return y

    return layer


def mixed_layer(w: Tensor) -> Layer:
    """Return the layer of weights on no grid whose inputs are quantized, but for outlier columns, in float32."""
    from bitsandbytes import functional
    from torch import nn

    def layer(x: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        codes, scales, outliers = functional.int8_vectorwise_quant(rows.half(), threshold=THRESHOLD)
        tokens = functional.int8_vectorwise_dequant(codes, scales).float()
        if outliers is not None:
            tokens[:, outliers] = rows[:, outliers].float()
        return nn.functional.linear(tokens.reshape(x.shape), w.float(), bias)

    return layer


def values_half(w: Tensor) -> Tensor:
    """Return Q(w), float32, row by row, of weights rounded to float16.

    Raises:
        ValueError: a weight is not finite as a float16.
    """
    import torch
    from bitsandbytes import functional

    half = w.detach().half()
    if not torch.isfinite(half).all():
        raise ValueError(f"weights must be finite float16 numbers for bnb-dynamic:{FORMAT}, got others")
    codes, scales, _ = functional.int8_vectorwise_quant(half)
    return functional.int8_vectorwise_dequant(codes, scales).float()


def dynamic_state(state: State, names: Sequence[str], format_name: str, calibration: Calibration | None) -> State:
    """Return the state with Q(w) in place of the named weights, whose layers quantize their inputs too."""
    from unforgotten.experiments.models.runtime import RuntimeState

    checked(format_name)
    need("unforgotten[quantizers]", "bitsandbytes")
    touched = set(names)
    return RuntimeState(
        state,
        lambda key: values_half(state[key]).to(state[key].dtype) if key in touched else state[key],
        lambda key: linear_layer(state[key]) if key in touched else None,
        lambda _, w: mixed_layer(w),
    )


QUANTIZERS = (
    Quantizer(
        "bnb-dynamic",
        "quantizers",
        dynamic_state,
        ours=checked,
        formats={FORMAT: "LLM.int8: int8 weights and, while the model runs, inputs of linear layers by token"},
        packages=("bitsandbytes",),
    ),
)
