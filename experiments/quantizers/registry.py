"""Quantizers of a model's linear layers by name, found in the modules beside this one: our formats, and real libraries.

A quantized model here computes with the dequantized weights in float32, so a result speaks of the weights alone, not of
a kernel's activations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from unforgotten.experiments.declared import by_name, declared
from unforgotten.experiments.quantizers.quantizer import Quantizer, State

if TYPE_CHECKING:
    from unforgotten.experiments.models.batches import Documents


def find_quantizers() -> Mapping[str, Quantizer]:
    """Return the quantizers that the modules of this package declare in `QUANTIZERS`."""
    return by_name(declared("unforgotten.experiments.quantizers", "QUANTIZERS"))


QUANTIZERS: Mapping[str, Quantizer] = find_quantizers()


def quantize_state(state: State, names: Sequence[str], format_name: str, calibration: Documents | None = None) -> State:
    """Return the state with Q(w) in place of the named weights.

    Args:
        state: weights by name.
        names: names of the weights to quantize.
        format_name: name of a format, after the name of a library and a colon if it is not ours to compute.
        calibration: token ids of text, for a library that wants to see some.

    Raises:
        ValueError: the library is unknown; and where a weight is asked for, the format is, or the library is missing.
    """
    prefix, _, name = format_name.rpartition(":")
    try:
        quantizer = QUANTIZERS[prefix]
    except KeyError:
        known = ", ".join(f"{p}:" for p in QUANTIZERS if p)
        raise ValueError(f"back end must be one of {known}, got format={format_name!r}") from None
    return quantizer.values(state, names, name, calibration)
