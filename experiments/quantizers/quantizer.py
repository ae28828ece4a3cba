"""What a quantizer is: it maps the weights of a model to the values that the deployed model computes with.

A library is a file of this folder with a module-level `QUANTIZERS`; `registry.py` finds it there, and a format that begins
with its name is quantized by it, "bnb:nf4-b64" by the quantizer "bnb". One that takes each tensor for itself needs a function
of a tensor alone:

    QUANTIZERS = (by_tensor("bnb", "quantizers", bitsandbytes_values),)

One that calibrates says which text it wants, and is given that text and a model to run it through:

    Quantizer("gptq-forget", None, values, text="forget")

A configuration is checked where torch is missing, so a file of this folder imports what is heavy inside of its functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from unforgotten.experiments.models.batches import Documents

State = Mapping[str, "Tensor"]
"""The weights of a model, by name; some are made when they are asked for, see `models/states.py`."""
Text = Literal["generic", "retain", "forget"]
"""Text of a run that a quantizer can be calibrated on: of neither split, or what unlearning sees of one."""
TEXTS: tuple[Text, ...] = get_args(Text)


@dataclass(frozen=True)
class Calibration:
    """What a quantizer that calibrates is given.

    Attributes:
        model: model that takes the weights to quantize; its own are overwritten.
        documents: token ids of each document.
        batch: documents of equal length that run together.
    """

    model: PreTrainedModel
    documents: Documents
    batch: int = 8


def not_ours(name: str) -> None:
    """Return None: no format of ours is known to have the values of this name."""


@dataclass(frozen=True)
class Quantizer:
    """One library, or our own path.

    Attributes:
        name: part of a format's name before the colon; "" for our own path.
        extra: extra of this package that installs the library; None if it needs none.
        values: Q of a state: from the state, the names of the weights to quantize, the format's name without the
            library's, and text with a model for a quantizer that calibrates; the other weights are the state's.
        codes: codes of one tensor in a format, indices into its levels; None for a library that shows none.
        text: text that it is calibrated on; None for one that looks at weights alone.
        ours: function that maps a name of its formats to the format of ours with the same values bit for bit, which the
            audit then measures; to None where there is none. Raises ValueError for a name that is no format of its.
        formats: families of its formats, without the library's name, and their meanings.
        packages: packages that it imports, as pip installs them.
    """

    name: str
    extra: str | None
    values: Callable[[State, Sequence[str], str, Calibration | None], State]
    codes: Callable[[Tensor, str], Tensor] | None = None
    text: Text | None = None
    ours: Callable[[str], str | None] = not_ours
    formats: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()


def by_tensor(
    name: str,
    extra: str | None,
    values: Callable[[Tensor, str], Tensor],
    codes: Callable[[Tensor, str], Tensor] | None = None,
    *,
    ours: Callable[[str], str | None] = not_ours,
    formats: Mapping[str, str] | None = None,
    packages: tuple[str, ...] = (),
) -> Quantizer:
    """Return the quantizer that takes each tensor for itself and no text, when it is asked for.

    Values keep the tensor's dtype and device. The library computes on the CPU, where it is held to what the audit knows of it.
    """

    def of_state(state: State, names: Sequence[str], format_name: str, calibration: Calibration | None) -> State:
        from unforgotten.experiments.models.states import LazyState

        touched = set(names)

        def weight(key: str) -> Tensor:
            w = state[key]
            return values(w.cpu(), format_name).to(w) if key in touched else w

        return LazyState(state, weight)

    return Quantizer(name, extra, of_state, codes, ours=ours, formats=formats or {}, packages=packages)
