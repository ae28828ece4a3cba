"""What quantizers that calibrate share: the walk through a model, and their names, one for each text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from unforgotten.experiments.quantizers.quantizer import TEXTS, Calibration, Quantizer, State
from unforgotten.records.extras import module_of, need
from unforgotten.theory.formats.names import Format, deterministic_format_named

if TYPE_CHECKING:
    from torch import Tensor

    from unforgotten.experiments.models.layer_inputs import Inputs

Rule = Callable[["Tensor", "Inputs", Format], "Tensor"]
"""Q of a weight in a format, from the weight, its inputs and the format."""


def any_format(name: str) -> None:
    """Take any format of ours that rounds to nearest.

    Raises:
        ValueError: the name is of none.
    """
    deterministic_format_named(name)


def by_layer(
    name: str,
    rule: Rule,
    formats: Mapping[str, str],
    *,
    takes: Callable[[str], None] = any_format,
    packages: tuple[str, ...] = (),
) -> tuple[Quantizer, ...]:
    """Return a quantizer for each text that takes layer by layer.

    Weights are quantized in the order of computation, each by the inputs that its quantized predecessors give it.

    Args:
        name: name of the method.
        rule: Q of one weight.
        formats: families of formats that the rule takes, and their meanings.
        takes: function that raises ValueError for a name of another format.
        packages: packages that the rule imports, as pip installs them.
    """

    def values(state: State, names: Sequence[str], format_name: str, calibration: Calibration) -> State:
        from unforgotten.experiments.models.layer_inputs import replace_in_order
        from unforgotten.experiments.models.states import LazyState, fill

        fmt = deterministic_format_named(format_name)
        replaced = replace_in_order(
            fill(calibration.model, state),
            names,
            calibration.documents,
            batch=calibration.batch,
            replace=lambda key, w, inputs: rule(state[key].to(w.device).float(), inputs, fmt).to(state[key]),
        )
        return LazyState(state, lambda key: replaced[key] if key in replaced else state[key])

    return one_of_each_text(name, values, formats, takes=takes, packages=packages)


def one_of_each_text(
    name: str,
    values: Callable[[State, Sequence[str], str, Calibration], State],
    formats: Mapping[str, str],
    *,
    takes: Callable[[str], None],
    packages: tuple[str, ...],
) -> tuple[Quantizer, ...]:
    """Return a quantizer for each text: `name` for the generic one, `name-retain` and `name-forget` for the splits.

    Args:
        name: name of the method.
        values: Q of a state, which is called with a format that it takes, a text and all packages there.
        formats: families of formats that it takes, and their meanings.
        takes: function that raises ValueError for a name of another format.
        packages: packages that it imports, as pip installs them.
    """

    def checked(state: State, names: Sequence[str], format_name: str, calibration: Calibration | None) -> State:
        takes(format_name)
        for package in packages:
            need(package, module_of(package))
        if calibration is None:
            raise ValueError(f"calibration must be given for {name}:{format_name}, got none")
        return values(state, names, format_name, calibration)

    return tuple(
        Quantizer(
            name if text == "generic" else f"{name}-{text}",
            None,
            checked,
            text=text,
            ours=takes,  # no values of ours are those of a calibrated quantizer
            formats=formats,
            packages=packages,
        )
        for text in TEXTS
    )
