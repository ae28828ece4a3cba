"""What a metric is: a number that a model shows on the probes of a run.

A metric is a file of this folder with a module-level `METRICS`; `registry.py` finds it there, and every model of a run and of
an audit's behaviour leg is measured by it, in every format; one that is `on_demand`, where `evaluation.metrics` names it. One that is the mean of its items needs their function alone:

    def _lengths(model: Examined, probes: Probes, settings: Measuring) -> list[float]:
        return [float(len(text)) for text in model.continuations(probes.forget_prompts, settings.evaluation.answer_tokens)]

    METRICS = (by_items("length", "mean length of answers, characters", _lengths),)

`unforgotten metrics` lists them where torch is missing, so a file of this folder imports what is heavy inside of its
functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from unforgotten.experiments.config import Measuring
    from unforgotten.experiments.metrics.examined import Examined
    from unforgotten.experiments.metrics.probes import Probes
    from unforgotten.records.store import Measurement

Need = Literal["retrained", "forget_wrong", "retain_wrong"]
"""What there may not be: "retrained", scores of the model that never saw the forget texts; "forget_wrong" and "retain_wrong",
wrong answers to questions of that split."""


@dataclass(frozen=True)
class Metric:
    """One number of a model.

    Attributes:
        name: name in the rows.
        meaning: meaning, with its unit and range.
        measure: measurement of a model by the probes, as the settings say.
        needs: things that must be there; without one of them the metric is left out.
        on_demand: whether it is measured only where `evaluation.metrics` names it.
        check: function that raises `ValueError` where settings ask for what cannot be measured, before a run trains.
    """

    name: str
    meaning: str
    measure: Callable[[Examined, Probes, Measuring], Measurement]
    needs: frozenset[Need] = frozenset()
    on_demand: bool = False
    check: Callable[[Measuring], None] | None = None


def by_items(
    name: str,
    meaning: str,
    items: Callable[[Examined, Probes, Measuring], Sequence[float]],
    needs: frozenset[Need] = frozenset(),
    *,
    on_demand: bool = False,
) -> Metric:
    """Return the metric that is the mean of its items, with the standard error of the mean."""

    def measure(model: Examined, probes: Probes, settings: Measuring) -> Measurement:
        from unforgotten.experiments.metrics.items import of_items

        return of_items(name, items(model, probes, settings))

    return Metric(name, meaning, measure, needs, on_demand)
