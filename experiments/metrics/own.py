"""A metric of one's own: a function or a `Metric`, in a file or a module, under its reference in place of a name.

    unforgotten run tiny --metric examples/own_metric.py:answer_length

`evaluation.metrics` of a profile takes the same references. A function is called with the model at the moment of its measurement
(`Examined`: what it says, and how likely texts are to it), the `Probes` and the settings of the run, and returns a number for each
item; the metric is their mean. Rows and reports call it by the part after the colon.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from unforgotten.experiments.metrics.metric import Metric, by_items
from unforgotten.experiments.own import function_of, label_of, load_object, said_of

if TYPE_CHECKING:
    from unforgotten.experiments.config import Measuring
    from unforgotten.experiments.metrics.examined import Examined
    from unforgotten.experiments.metrics.probes import Probes

ARGUMENTS = ("model", "probes", "settings")


@cache
def load_own(reference: str) -> Metric:
    """Return the metric that a reference stands for.

    Raises:
        ValueError: it cannot be loaded, see `load_object`; it is neither a `Metric` nor a function of three arguments; or it is a
            `Metric` with another name than the reference's.
    """
    found, name = load_object(reference, "metric"), label_of(reference)
    if isinstance(found, Metric):
        if found.name != name:
            raise ValueError(f"{reference}: must be called as its Metric is, {found.name!r}, got {name!r}")
        return found
    function = function_of(reference, found, ARGUMENTS, "Metric")
    return by_items(name, said_of(function, "metric"), _checked(reference, function), on_demand=True)


def _checked(reference: str, function: Callable[..., Any]) -> Callable[[Examined, Probes, Measuring], Sequence[float]]:
    def items(model: Examined, probes: Probes, settings: Measuring) -> Sequence[float]:
        given = function(model, probes, settings)
        rule = "must return a finite number for each item"
        try:
            numbers = [float(value) for value in given]
        except (TypeError, ValueError):
            raise ValueError(f"{reference}: {rule}, got {type(given).__name__}") from None
        if not numbers:
            raise ValueError(f"{reference}: {rule}, got no items")
        for i, value in enumerate(numbers):
            if not math.isfinite(value):
                raise ValueError(f"{reference}: {rule}, got {value} for item {i}")
        return numbers

    return items
