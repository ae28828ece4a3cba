"""Quantizers of a model's linear layers by name, found in the modules beside this one: our formats, and real libraries.

A quantized model here computes with the dequantized weights in float32, so a result speaks of the weights alone, not of
a kernel's activations; but for dynamic quantization, whose states say how their layers compute (`models/runtime.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from unforgotten.experiments.declared import by_name, declared
from unforgotten.experiments.quantizers.quantizer import Calibration, Quantizer, State, Text
from unforgotten.records.extras import module_of, pip_install


def find_quantizers() -> Mapping[str, Quantizer]:
    """Return the quantizers that the modules of this package declare in `QUANTIZERS`."""
    return by_name(declared("unforgotten.experiments.quantizers", "QUANTIZERS"))


QUANTIZERS: Mapping[str, Quantizer] = find_quantizers()


def quantize_state(
    state: State, names: Sequence[str], format_name: str, calibration: Calibration | None = None
) -> State:
    """Return the state with Q(w) in place of the named weights.

    Args:
        state: weights by name.
        names: names of the weights to quantize.
        format_name: name of a format, after the name of a library and a colon if it is not ours to compute.
        calibration: text and a model, for a quantizer that calibrates.

    Raises:
        ValueError: the library is unknown, or calibrates and was given no text; and where a weight is asked for, the
            format is unknown, or the library is missing.
    """
    quantizer, name = quantizer_of(format_name)
    if quantizer.text is not None and calibration is None:
        raise ValueError(f"calibration must be given for {quantizer.name}:, got format={format_name!r} without text")
    return quantizer.values(state, names, name, calibration)


def quantizer_of(format_name: str) -> tuple[Quantizer, str]:
    """Return the quantizer of a format and the format's name without the quantizer's.

    Raises:
        ValueError: no quantizer has the name before the colon.
    """
    prefix, _, name = format_name.rpartition(":")
    try:
        return QUANTIZERS[prefix], name
    except KeyError:
        known = ", ".join(f"{p}:" for p in QUANTIZERS if p)
        raise ValueError(f"back end must be one of {known}, got format={format_name!r}") from None


def known_formats() -> Mapping[str, str]:
    """Return every family of formats by its name in a run, and its meaning with what it needs; our own come first."""
    found: dict[str, str] = {}
    for quantizer in sorted(QUANTIZERS.values(), key=lambda q: q.name != ""):
        prefix = f"{quantizer.name}:" if quantizer.name else ""
        for names, meaning in quantizer.formats.items():
            key = ", ".join(f"{prefix}{name}" for name in names.split(", "))
            found[key] = meaning + _needed(quantizer)
    return found


def _needed(quantizer: Quantizer) -> str:
    """Return what a quantizer needs, and whether it is there."""
    text = f"; calibrated on {quantizer.text} text" if quantizer.text else ""
    for package in quantizer.packages:
        there = "" if find_spec(module_of(package)) else ", missing here"
        command = pip_install(f"unforgotten[{quantizer.extra}]" if quantizer.extra else package)
        text += f"; needs {package.partition('==')[0]}{there}: {command}"
    return text


def text_of(format_name: str) -> Text | None:
    """Return the text that a format is calibrated on; None for "none" and for one that looks at weights alone."""
    return None if format_name == "none" else quantizer_of(format_name)[0].text


def ours_of(format_name: str) -> str | None:
    """Return the format of ours with the same values bit for bit; None where there is none.

    Raises:
        ValueError: the library is unknown, or has no such format.
    """
    quantizer, name = quantizer_of(format_name)
    return quantizer.ours(name)
