"""The metrics by name, found in the modules beside this one. M1-M4 are MUSE's, and every departure is a setting.

M1 verbatim memory, M2 and M4 knowledge of the forget and retain split, M3 privacy leakage.
"""

from __future__ import annotations

from collections.abc import Mapping

from unforgotten.experiments.declared import by_name, declared
from unforgotten.experiments.metrics.metric import Metric

FIRST = ("M1", "M2", "M4", "forget_loss", "retain_loss", "auc", "M3", "auc_gap")
"""The order in which rows have always had them; any other comes after."""


def find_metrics() -> Mapping[str, Metric]:
    """Return the metrics that the modules of this package declare in `METRICS`, in the order of a run's rows."""
    found = by_name(declared("unforgotten.experiments.metrics", "METRICS"))
    return {name: found[name] for name in dict.fromkeys((*FIRST, *found))}


METRICS: Mapping[str, Metric] = find_metrics()
