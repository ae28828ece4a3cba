"""forget_truth_ratio and retain_truth_ratio: whether a model tells a true answer from false ones of the same form.

R = mean over wrong answers of p(wrong | q)^(1 / n) / p(paraphrase | q)^(1 / n), each normalized for its length; the answer
itself stands in for the paraphrase where the data has none. An item of the forget split is min(R, 1 / R), 1 where true and
false are alike; of the retain split max(0, 1 - R), 1 where the true one is far likelier. Maini et al. 2024, TOFU (arXiv
2401.06121), equation 1; OpenUnlearning's code takes the geometric mean over wrong answers. Questions without wrong answers,
`perturbed_answer`, are left out, and without any the metric is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from unforgotten.experiments.metrics.metric import Need, by_items
from unforgotten.experiments.metrics.on_demand.probability import probabilities

if TYPE_CHECKING:
    from unforgotten.experiments.config import Measuring
    from unforgotten.experiments.metrics.examined import Examined
    from unforgotten.experiments.metrics.probes import Options, Probes


def alike(true: float, wrong: Sequence[float]) -> float:
    """Return min(R, 1 / R), R the mean of `wrong` over `true`: 0 to 1; 1 where all are 0.

    Args:
        true: normalized probability of the true answer, 0 to 1.
        wrong: those of the wrong ones, at least one.
    """
    mean = sum(wrong) / len(wrong)
    larger = max(true, mean)
    return min(true, mean) / larger if larger else 1.0


def told_apart(true: float, wrong: Sequence[float]) -> float:
    """Return max(0, 1 - R), R the mean of `wrong` over `true`: 0 to 1; 0 where all are 0. Arguments as of `alike`."""
    mean = sum(wrong) / len(wrong)
    return 1.0 - mean / true if mean < true else 0.0


def _probabilities(model: Examined, options: Sequence[Options]) -> list[tuple[float, list[float]]]:
    """Return for each question with wrong answers the true one's probability and theirs."""
    asked = [option for option in options if option.wrong]
    flat = iter(probabilities(model, [a for option in asked for a in (option.paraphrase, *option.wrong)]))
    return [(next(flat), [next(flat) for _ in option.wrong]) for option in asked]


def _of_forget(model: Examined, probes: Probes, settings: Measuring) -> list[float]:
    return [alike(true, wrong) for true, wrong in _probabilities(model, probes.forget_options)]


def _of_retain(model: Examined, probes: Probes, settings: Measuring) -> list[float]:
    return [told_apart(true, wrong) for true, wrong in _probabilities(model, probes.retain_options)]


METRICS = (
    by_items(
        "forget_truth_ratio",
        "truth ratio of forget questions, 0-1; 1 is true and false answers alike; on demand",
        _of_forget,
        frozenset[Need]({"forget_wrong"}),
        on_demand=True,
    ),
    by_items(
        "retain_truth_ratio",
        "truth ratio of retain questions, 0-1; 1 is the true answer far likelier; on demand",
        _of_retain,
        frozenset[Need]({"retain_wrong"}),
        on_demand=True,
    ),
)
