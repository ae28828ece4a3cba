"""One finding of an audit: what was seen, how large it is, how sure, and one plain sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypedDict

from unforgotten.records.shares import clopper_pearson

Severity = Literal["error", "warning", "note"]
FindingId = Literal[
    "not-measured",
    "other-layout",
    "router-only",
    "no-update",
    "swallowed",
    "comes-back",
    "forgets-further",
    "functional-gain",
    "zero-bin",
    "on-grid",
    "dead-zone",
    "wash",
    "concentration",
    "layers",
    "storage",
    "kept-changed",
    "advice",
    "codes-differ",
    "codes-equal",
    "retain-lost",
    "theory-disagrees",
    "ran-in-dtype",
]
CONFIDENCE_TAIL = 0.025  # on each side of an interval
STANDARD_DEVIATIONS = 2.0  # on each side, where an interval is that of a mean


class FindingRow(TypedDict):
    """One finding.

    `severity`: "error": quantization loses the update; "warning": look at it before a release; "note": explains.
    `measure` says what the number `effect` is; `interval` is [low, high] at 95 %, or ± two standard errors; `p` an exact
    p-value or an upper bound of it. None where a finding has no such thing: a count of a whole checkpoint has no error.
    """

    id: FindingId
    severity: Severity
    format: str | None
    tensor: str | None
    measure: str
    effect: float | None
    interval: list[float] | None
    p: float | None
    sentence: str


class Ratio(NamedTuple):
    """A ratio of two sums over clusters, and its interval."""

    value: float
    low: float
    high: float


def share_interval(hits: int, count: int) -> list[float]:
    """Return the Clopper-Pearson interval, which holds the true share in 95 % of cases or more; [0, 1] for no trial."""
    return list(clopper_pearson(hits, count, CONFIDENCE_TAIL))


def ratio_of_sums(top: Sequence[float], bottom: Sequence[float]) -> Ratio:
    """Return R = sum y / sum x over clusters, ± two of sqrt(n / (n - 1) sum (y - R x)^2) / sum x (linearization).

    A single cluster has no spread: its interval is [0, 1] for a share. nan where the sum below is 0.

    Args:
        top: values of y, one a cluster.
        bottom: values of x, >= 0, as many.
    """
    total = math.fsum(bottom)
    if not total:
        return Ratio(math.nan, math.nan, math.nan)
    value, n = math.fsum(top) / total, len(top)
    if n < 2:
        return Ratio(value, 0.0, 1.0)
    square = math.fsum((y - value * x) ** 2 for y, x in zip(top, bottom, strict=True))
    margin = STANDARD_DEVIATIONS * math.sqrt(n / (n - 1) * square) / total
    return Ratio(value, value - margin, value + margin)


def share_of_sums(top: Sequence[float], bottom: Sequence[float]) -> Ratio:
    """Return a ratio of sums that is a share: its interval is cut to [0, 1]."""
    value, low, high = ratio_of_sums(top, bottom)
    return Ratio(value, max(0.0, low), min(1.0, high))


def finding(
    id: FindingId,
    severity: Severity,
    sentence: str,
    *,
    measure: str = "",
    effect: float | None = None,
    interval: Sequence[float] | None = None,
    p: float | None = None,
    format: str | None = None,
    tensor: str | None = None,
) -> FindingRow:
    """Return a finding as a row; what is not given does not apply."""
    return FindingRow(
        id=id,
        severity=severity,
        format=format,
        tensor=tensor,
        measure=measure,
        effect=effect,
        interval=None if interval is None else [float(x) for x in interval],
        p=p,
        sentence=sentence,
    )
