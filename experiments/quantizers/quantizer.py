"""What a quantizer is: it maps the weights of a model to the values that the deployed model computes with.

A library is a file of this folder with a module-level `QUANTIZERS`; `registry.py` finds it there, and a format that begins
with its name is quantized by it, "bnb:nf4-b64" by the quantizer "bnb". One that takes each tensor for itself needs a function
of a tensor alone:

    QUANTIZERS = (by_tensor("bnb", "quantizers", bitsandbytes_values),)

A configuration is checked where torch is missing, so a file of this folder imports what is heavy inside of its functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from unforgotten.experiments.models.batches import Documents

State = dict[str, "Tensor"]
"""The weights of a model, by name."""


@dataclass(frozen=True)
class Quantizer:
    """One library, or our own path.

    Attributes:
        name: part of a format's name before the colon; "" for our own path.
        extra: extra of this package that installs the library; None if it needs none.
        values: Q of a state: from the state, the names of the weights to quantize, the format's name without the
            library's, and token ids of text for a quantizer that wants to see some; the other weights are shared, not
            copied.
        codes: codes of one tensor in a format, indices into its levels; None for a library that shows none.
    """

    name: str
    extra: str | None
    values: Callable[[State, Sequence[str], str, Documents | None], State]
    codes: Callable[[Tensor, str], Tensor] | None = None


def by_tensor(
    name: str,
    extra: str | None,
    values: Callable[[Tensor, str], Tensor],
    codes: Callable[[Tensor, str], Tensor] | None = None,
) -> Quantizer:
    """Return the quantizer that takes each tensor for itself and no text; values keep the dtype of the weights."""

    def of_state(state: State, names: Sequence[str], format_name: str, calibration: Documents | None) -> State:
        touched = set(names)
        return {k: values(v, format_name).to(v.dtype) if k in touched else v for k, v in state.items()}

    return Quantizer(name, extra, of_state, codes)
