"""From the items of a metric to its value."""

from __future__ import annotations

from collections.abc import Sequence

from unforgotten.audit.verdict.evidence import mean_of
from unforgotten.audit.verdict.legs import Mean
from unforgotten.records.store import Measurement


def of_items(metric: str, items: Sequence[float]) -> Measurement:
    """Return the mean of the items, with its standard error."""
    mean = mean_of(items)
    return Measurement(metric, mean["value"], mean["stderr"], mean["n"], tuple(float(x) for x in items))


def as_mean(m: Measurement) -> Mean:
    """Return a measurement as `audit.json` holds it."""
    return Mean(value=m.value, stderr=m.stderr, n=m.n or 0)
