"""GPTQ on the grid of any format of ours: `gptq:int4-g64` has the scales of `int4-g64`, and other codes.

Columns are rounded one after the other, each error pushed onto the columns to come (arXiv 2210.17323), with the factor of
`theory/formats/gptq.py`. Grids are fitted before the first column moves, columns keep their order. H and the corrections are
float64, codes and values float32 by the rule of the format, so that where H is diagonal the values are those of the format
itself, bit for bit. A column that no input reached is rounded alone.

`gptq:` is calibrated on generic text, `gptq-retain:` and `gptq-forget:` on what unlearning sees of a split.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from unforgotten.experiments.quantizers.calibrated import by_layer
from unforgotten.theory.formats.names import Format

if TYPE_CHECKING:
    from torch import Tensor

    from unforgotten.experiments.models.layer_inputs import Inputs

DAMPING = 0.01  # share of the mean diagonal that is added to the diagonal, as in auto-gptq and llm-compressor
TOGETHER = 128  # columns after which errors go to all later columns in one product of matrices


def gptq_values(w: Tensor, hessian: Tensor, fmt: Format, damping: float = DAMPING) -> Tensor:
    """Return Q(w), float32 in the shape of `w`.

    Args:
        w: weights, float32 (rows, columns).
        hessian: matrix H, float64 symmetric (columns, columns), not damped.
        fmt: format that rounds to nearest.
        damping: share of the mean diagonal that is added to the diagonal, above 0 where H is singular.

    Raises:
        ValueError: H does not fit or is not positive definite after damping, or the format cannot take the weights.
    """
    import torch

    from unforgotten.experiments.quantizers.torch_path import fit_weights, round_to
    from unforgotten.theory.formats.gptq import inverse_factor

    if w.ndim != 2 or hessian.shape != (w.shape[1], w.shape[1]):
        raise ValueError(f"hessian must be (columns, columns) of w, got {tuple(w.shape)} and {tuple(hessian.shape)}")
    p = fit_weights(w, fmt)
    h = hessian.clone()
    diagonal = h.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damping * diagonal.mean()
    factor = torch.from_numpy(inverse_factor(h.cpu().numpy())).to(w.device)
    moving, values = w.double(), torch.empty_like(w)
    for start in range(0, w.shape[1], TOGETHER):
        end = min(start + TOGETHER, w.shape[1])
        errors = torch.empty(len(w), end - start, dtype=torch.float64, device=w.device)
        for i in range(start, end):
            column = slice(i, i + 1)
            own = p.each(partial(_columns, part=column))
            values[:, column] = round_to(moving[:, column].float(), own, fmt)[1]
            error = (moving[:, column] - values[:, column]) / factor[i, i]
            errors[:, i - start : i - start + 1] = error
            moving[:, i + 1 : end] -= error * factor[i, i + 1 : end]
        moving[:, end:] -= errors @ factor[start:end, end:]
    return values


def _columns(x: Tensor, part: slice) -> Tensor:
    return x[:, part]


def _rule(w: Tensor, inputs: Inputs, fmt: Format) -> Tensor:
    return gptq_values(w, inputs.hessian, fmt)


QUANTIZERS = by_layer("gptq", _rule, {"FORMAT": "GPTQ on the grid of FORMAT, one of ours that rounds to nearest"})
