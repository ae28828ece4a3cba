"""The metrics by name, found in the modules beside this one. M1-M4 are MUSE's, and every departure is a setting.

M1 verbatim memory, M2 and M4 knowledge of the forget and retain split, M3 privacy leakage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from unforgotten.experiments.declared import by_name, declared
from unforgotten.experiments.metrics.metric import Metric
from unforgotten.experiments.metrics.own import load_own
from unforgotten.experiments.own import is_own, named

FIRST = ("M1", "M2", "M4", "forget_loss", "retain_loss", "auc", "M3", "auc_gap")
"""The order in which rows have always had them; any other comes after."""


def find_metrics() -> Mapping[str, Metric]:
    """Return the metrics that the modules of this package declare in `METRICS`, in the order of a run's rows."""
    found = by_name(declared("unforgotten.experiments.metrics", "METRICS"))
    return {name: found[name] for name in dict.fromkeys((*FIRST, *found))}


METRICS: Mapping[str, Metric] = find_metrics()


def metric_named(name: str) -> Metric:
    """Return the metric of a name, or of a reference to one's own.

    Raises:
        ValueError: there is none, see `load_own` for a reference.
    """
    return named(name, METRICS, load_own, "metrics must be of", "metric=")


def measured_with(names: Iterable[str]) -> Mapping[str, Metric]:
    """Return the metrics of a run that asks for some of these on demand, in the order of its rows."""
    own = (load_own(name) for name in names if is_own(name))
    return {**METRICS, **{metric.name: metric for metric in own}}
