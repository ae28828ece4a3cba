"""AWQ in any format of ours whose blocks lie in rows: `awq:int4-g64-asym` rounds columns that were scaled up by s.

The values that the model computes with are `Q(w s) / s`; s is the candidate of least mean squared output error on the text
(arXiv 2306.00978), by the candidates of `theory/formats/awq.py` for llm-compressor, the first of which is s = 1. Each layer
has an s of its own, that of the layer's own output error; weights are not clipped.

`awq:` is calibrated on generic text, `awq-retain:` and `awq-forget:` on what unlearning sees of a split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unforgotten.experiments.quantizers.calibrated import by_layer
from unforgotten.theory.formats.names import Format

if TYPE_CHECKING:
    from torch import Tensor

    from unforgotten.experiments.models.layer_inputs import Inputs


def scaled_values(w: Tensor, scales: Tensor, fmt: Format) -> Tensor:
    """Return Q(w s) / s, float32 in the shape of `w`.

    Args:
        w: weights, float32 (rows, columns).
        scales: factors s > 0 of the columns, float32 (columns,).
        fmt: the format.
    """
    from unforgotten.experiments.quantizers.torch_path import encode_tensor

    return encode_tensor(w * scales, fmt)[1] / scales


def output_error(w: Tensor, values: Tensor, hessian: Tensor) -> float:
    """Return tr((Q - W) H (Q - W)') in float64: with H = 2/n X'X, twice the mean over tokens of the squared output error.

    Args:
        w: weights W, (rows, columns).
        values: what takes their place, Q, same shape.
        hessian: matrix H, float64 (columns, columns).
    """
    lost = values.double() - w.double()
    return float(((lost @ hessian) * lost).sum())


def awq_values(w: Tensor, inputs: Inputs, fmt: Format) -> Tensor:
    """Return Q(w s) / s for the candidate of least output error, of equals the first, float32 in the shape of `w`.

    A candidate whose scaled weights overflow is left out; s = 1 is among the candidates, so the error is never
    above that of the format itself. A layer that no token reached has s = 1.

    Raises:
        ValueError: the blocks do not divide the rows, or the format cannot take the weights.
    """
    import torch

    from unforgotten.theory.formats.awq import AWQ_RULES, candidate_scales, weight_means

    size = fmt.block_size or w.shape[-1]
    if w.shape[-1] % size:
        raise ValueError(f"rows must be whole blocks of {size} in awq:{fmt.name}, got columns={w.shape[-1]}")
    best = scaled_values(w, torch.ones(w.shape[1], device=w.device), fmt)
    if not inputs.tokens:
        return best
    hessian, x_mean = inputs.hessian, inputs.means.float().cpu().numpy()
    w_mean, least = weight_means(w.cpu().numpy(), size), output_error(w, best, hessian)
    for candidate in AWQ_RULES["llmcompressor"].candidates:
        scales = torch.from_numpy(candidate_scales(x_mean, w_mean, candidate)).to(w.device)
        if not torch.isfinite(w * scales).all():
            continue
        values = scaled_values(w, scales, fmt)
        error = output_error(w, values, hessian)
        if error < least:
            best, least = values, error
    return best


QUANTIZERS = by_layer("awq", awq_values, {"FORMAT": "AWQ in FORMAT, one of ours that rounds to nearest"})
