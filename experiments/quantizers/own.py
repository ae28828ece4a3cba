"""Our own quantizer: every format of `theory`, by the torch path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unforgotten.experiments.quantizers.quantizer import by_tensor

if TYPE_CHECKING:
    from torch import Tensor


def own_values(w: Tensor, name: str) -> Tensor:
    """Return Q(w) by our torch path."""
    return _encoded(w, name)[1]


def own_codes(w: Tensor, name: str) -> Tensor:
    """Return the codes of w by our torch path, indices into the format's levels."""
    return _encoded(w, name)[0]


def _encoded(w: Tensor, name: str) -> tuple[Tensor, Tensor]:
    from unforgotten.experiments.quantizers.torch_path import encode_tensor
    from unforgotten.theory.formats.names import format_named

    return encode_tensor(w, format_named(name))


QUANTIZERS = (by_tensor("", None, own_values, own_codes),)
