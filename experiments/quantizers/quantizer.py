"""What a quantizer is: it maps the weights of a model to the values that the deployed model computes with.

A library is a file of this folder with a module-level `QUANTIZERS`; `registry.py` finds it there, and a format that begins
with its name is quantized by it, "bnb:nf4-b64" by the quantizer "bnb". One that takes each tensor for itself needs a function
of a tensor alone:

    QUANTIZERS = (by_tensor("bnb", "quantizers", bitsandbytes_values),)

A configuration is checked where torch is missing, so a file of this folder imports what is heavy inside of its functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from unforgotten.experiments.models.batches import Documents

State = Mapping[str, "Tensor"]
"""The weights of a model, by name; some are made when they are asked for, see `models/states.py`."""


@dataclass(frozen=True)
class Quantizer:
    """One library, or our own path.

    Attributes:
        name: part of a format's name before the colon; "" for our own path.
        extra: extra of this package that installs the library; None if it needs none.
        values: Q of a state: from the state, the names of the weights to quantize, the format's name without the
            library's, and token ids of text for a quantizer that wants to see some; the other weights are the state's.
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
    """Return the quantizer that takes each tensor for itself and no text, when it is asked for; values keep its dtype."""

    def of_state(state: State, names: Sequence[str], format_name: str, calibration: Documents | None) -> State:
        from unforgotten.experiments.models.states import LazyState

        touched = set(names)

        def weight(key: str) -> Tensor:
            w = state[key]
            return values(w, format_name).to(w.dtype) if key in touched else w

        return LazyState(state, weight)

    return Quantizer(name, extra, of_state, codes)
