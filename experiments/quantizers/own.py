"""Our own quantizer: every format of `theory`, by the torch path. Of a dithered format each tensor has a dither of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from unforgotten.experiments.quantizers.quantizer import Calibration, Quantizer, State
from unforgotten.theory.formats.names import FAMILIES, format_named

if TYPE_CHECKING:
    from torch import Tensor


def own_values(w: Tensor, name: str) -> Tensor:
    """Return Q(w) by our torch path; the dither of a dithered format is that of a tensor without a name.

    A tensor of three axes is a stack of matrices, experts say, and each is quantized for itself.
    """
    import torch

    return torch.stack([own_values(matrix, name) for matrix in w]) if w.ndim == 3 else _encoded(w, name)[1]


def own_codes(w: Tensor, name: str) -> Tensor:
    """Return the codes of w by our torch path, indices into the format's levels."""
    return _encoded(w, name)[0]


def own_state(state: State, names: Sequence[str], format_name: str, calibration: Calibration | None) -> State:
    """Return the state with Q(w) in place of the named weights, made when they are asked for; values keep the dtype."""
    from unforgotten.experiments.models.states import LazyState

    touched = set(names)

    def weight(key: str) -> Tensor:
        w = state[key]
        return _encoded(w, format_name, key)[1].to(w.dtype) if key in touched else w

    return LazyState(state, weight)


def _encoded(w: Tensor, name: str, tensor: str | None = None) -> tuple[Tensor, Tensor]:
    from unforgotten.experiments.quantizers.torch_path import encode_tensor
    from unforgotten.theory.formats.dither import tensor_seed

    fmt = format_named(name)
    return encode_tensor(w, fmt if tensor is None else tensor_seed(fmt, tensor))


def deterministic(name: str) -> str | None:
    """Return the name of a format of ours that rounds to nearest, which the audit measures; None for a dithered one.

    Raises:
        ValueError: no family has that name.
    """
    return None if format_named(name).dithered else name


QUANTIZERS = (Quantizer("", None, own_state, own_codes, ours=deterministic, formats=FAMILIES),)
