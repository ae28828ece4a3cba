"""SmoothQuant (arXiv 2211.10438): as `dynamic:`, but inputs are divided by factors that weights are multiplied by: `smoothquant:int8-row`.

The factor of a column is s = max|x|^a / max|w|^(1-a), a = 1/2, eq. 4: the first maximum over the tokens of a text in the model
that is not quantized, the second over the rows of all layers that are given the output of the same norm. Both are at least
1e-5, and so is s, as in the released code. Layers that are given what no norm computes, as the outputs of attention and MLP
are, have no factors there and none here. Dividing inputs is the same as dividing the norm's weights, but for a rounding.

`smoothquant:` is calibrated on generic text, `smoothquant-retain:` and `smoothquant-forget:` on what unlearning sees of a split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unforgotten.experiments.quantizers.calibrated import one_of_each_text
from unforgotten.experiments.quantizers.dynamic import integer_layer, mixed_layer, row_format
from unforgotten.experiments.quantizers.quantizer import Calibration, State

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unforgotten.experiments.models.runtime import Layer

STRENGTH = 0.5
LEAST = 1e-5


def smoothing_factors(largest: Tensor, weights: Sequence[Tensor], strength: float = STRENGTH) -> Tensor:
    """Return s = max|x|^a / max|w|^(1-a) of each column, (columns,).

    Args:
        largest: max|x| over tokens, (columns,).
        weights: weights of the layers that are given x, (rows, columns) each.
        strength: exponent a, in [0, 1].
    """
    import torch

    of_weights = torch.stack([w.abs().amax(0) for w in weights]).amax(0).clamp(min=LEAST)
    return (largest.clamp(min=LEAST) ** strength / of_weights ** (1 - strength)).clamp(min=LEAST)


def after_norms(model: nn.Module, names: Sequence[str], calibration: Calibration) -> list[tuple[list[str], Tensor]]:
    """Return the weights of the layers that are given the same norm's output, and max|x| of its columns on the text.

    Args:
        model: model with weights that are not quantized.
        names: names of the weights to look at.
        calibration: text.

    Raises:
        ValueError: there is no text.
    """
    import torch
    from torch import nn

    from unforgotten.experiments.models.layer_inputs import equal_lengths

    outputs: dict[nn.Module, Tensor] = {}
    largest: dict[nn.Module, Tensor] = {}
    fed: dict[nn.Module, list[str]] = {}

    def of_norm(module: nn.Module, _: Any, output: Tensor) -> None:
        outputs[module] = output

    def of_linear(name: str, x: Tensor) -> None:
        norm = next((module for module, output in outputs.items() if output is x), None)
        if norm is not None:
            columns = x.detach().abs().reshape(-1, x.shape[-1]).amax(0)
            largest[norm] = torch.maximum(largest[norm], columns) if norm in largest else columns
            fed[norm] = sorted({*fed.get(norm, []), name})

    wanted, handles = set(names), []
    for key, module in model.named_modules():
        if "norm" in type(module).__name__.lower():
            handles.append(module.register_forward_hook(of_norm))
        elif isinstance(module, nn.Linear) and f"{key}.weight" in wanted:
            handles.append(module.register_forward_pre_hook(lambda _, x, key=key: of_linear(f"{key}.weight", x[0])))
    batches = list(equal_lengths(calibration.documents, calibration.batch))
    if not batches:
        raise ValueError("documents must hold a token to calibrate on, got none")
    try:
        with torch.no_grad():
            for ids in batches:
                outputs.clear()
                model(input_ids=ids.to(next(model.parameters()).device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [(fed[norm], largest[norm]) for norm in fed]


def divided(layer: Layer, factors: Tensor) -> Layer:
    """Return the layer that divides its inputs by factors, (columns,)."""

    def smoothed(x: Tensor, bias: Tensor | None) -> Tensor:
        return layer(x / factors.to(x), bias)

    return smoothed


def smooth_state(state: State, names: Sequence[str], format_name: str, calibration: Calibration) -> State:
    """Return the state with Q(w s) / s in place of the named weights, whose layers quantize x / s."""
    import torch

    from unforgotten.experiments.models.runtime import RuntimeState
    from unforgotten.experiments.models.states import fill
    from unforgotten.experiments.quantizers.own import own_values

    found: dict[str, Tensor] = {}
    for layers, largest in after_norms(fill(calibration.model, state), names, calibration):
        found |= dict.fromkeys(layers, smoothing_factors(largest, [state[name].float() for name in layers]))
    factors: Mapping[str, Tensor] = {
        name: found.get(name, torch.ones(state[name].shape[-1])).to(state[name].device) for name in names
    }

    def weight(key: str) -> Tensor:
        w = state[key]
        if key not in factors:
            return w
        return (own_values(w.float() * factors[key], format_name) / factors[key]).to(w.dtype)

    def layer(key: str) -> Layer | None:
        if key not in factors:
            return None
        return divided(integer_layer(state[key].float() * factors[key], format_name), factors[key])

    return RuntimeState(
        state, weight, layer, lambda key, w: divided(mixed_layer(w.float() * factors[key], format_name), factors[key])
    )


def by_row(name: str) -> None:
    """Take symmetric integers by row.

    Raises:
        ValueError: the format is another.
    """
    row_format(name, "smoothquant")


QUANTIZERS = one_of_each_text(
    "smoothquant",
    smooth_state,
    {"int{2..8}-row": "SmoothQuant: as dynamic:, but inputs are divided by factors that weights are multiplied by"},
    takes=by_row,
    packages=(),
)
