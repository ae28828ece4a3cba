"""From the items of six models to the rows that the verdict reads: rho, its tests, and the leak over formats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, t

from unforgotten.audit.verdict.legs import Leak, Mean, RecoveryRow
from unforgotten.records.shares import clopper_pearson
from unforgotten.theory.laws.multiplicity import false_discoveries
from unforgotten.theory.models import fieller
from unforgotten.theory.models.bootstrap import checked, interval, resampled_means
from unforgotten.theory.models.recovery import recovered_fraction

MATERIAL = 1 / 3  # the share of the removed from which its return matters
SURELY = 0.1  # the share whose return must be beyond chance to speak of a return
LEVEL = 0.05  # of every error the rule aims at
HALF = 0.5  # of an item's removal: given back, the item counts as leaked
EPSILON = 2.0**-53  # relative error of one rounding in float64
SEED = 0  # of the resampling, the same for all, so that an audit repeats


class Items(NamedTuple):
    """The metric of every item on four models, (n,) each."""

    target: NDArray[Any]
    unlearned: NDArray[Any]
    quantized_target: NDArray[Any]
    quantized_unlearned: NDArray[Any]


def recovery_row(metric: str, items: Items, *, loss: bool = False) -> RecoveryRow:
    """Return the recovery T16 and two tests of c_i = (q_i - u_i) - r (t_i - u_i): rho > r is mean c > 0 (Fieller 1954).

    The interval is Fieller's with pseudo-items, `fieller.recovery_interval`, whose rates are tested; rho is shown where it
    says that rho is defined. `bootstrap` is the percentile interval of `recovered_fraction`, for the rule alone.

    Student's t on c tests rho <= SURELY, for "undone", and rho >= MATERIAL, for "survives". t trusts the spread that it
    saw, which for items that come back wholly or not at all can be 0 by luck; so no p-value is below what such items
    allow: (1 - MATERIAL)^n for "survives", the chance that none of n came back though MATERIAL of them do, and SURELY^n
    for "undone". n is the number of equal removals that varies as much, (sum r)^2 / sum r^2 (Kish 1965), for what was
    removed from the items is unequal.

    Args:
        metric: name of the metric.
        items: items of the four models, (n,) each, n >= 2.
        loss: whether less of the metric means more knowledge.

    Raises:
        ValueError: shapes differ, there are fewer than two items, or one is not finite.
    """
    before, u, t_, q = (x[0] for x in checked(*items))
    r, resampled = fieller.recovery_interval(u, q, t_), recovered_fraction(u, q, t_, seed=SEED)
    sign = -1.0 if loss else 1.0
    removed = _mean_interval(sign * (before - u))[0] > 0
    there = removed and float((sign * (t_ - u)).mean()) > 0
    shown = there and r.defined
    p_undone, p_survives = _tests(sign * (q - u), sign * (t_ - u)) if shown else (1.0, 1.0)
    return RecoveryRow(
        metric=metric,
        n=len(u),
        target=float(before.mean()),
        unlearned=float(u.mean()),
        quantized_target=float(t_.mean()),
        quantized_unlearned=float(q.mean()),
        removed=removed,
        rho=r.rho if shown else None,
        low=r.low if shown else None,
        high=r.high if shown else None,
        bootstrap=[resampled.low, resampled.high] if there and resampled.defined else None,
        change=list(_mean_interval(q - u)),
        p_undone=p_undone,
        p_survives=p_survives,
        effective=effective_items(sign * (t_ - u)) if shown else None,
    )


def _mean_interval(values: NDArray[Any]) -> tuple[float, float]:
    return interval(resampled_means(*checked(values), seed=SEED)[0])


def _tests(back: NDArray[Any], removed: NDArray[Any]) -> tuple[float, float]:
    n = effective_items(removed)
    undone = max(student(back - SURELY * removed), SURELY**n)
    survives = max(1.0 - student(back - MATERIAL * removed), (1.0 - MATERIAL) ** n)
    return undone, survives


def effective_items(removed: NDArray[Any]) -> float:
    """Return Kish's number of items over what was removed from them, negative ones counted as 0.

    Rounded up by what it can have lost, and at most the number of positive r: equal removals count whole.
    """
    weights = np.maximum(removed, 0.0)
    positive = int(np.count_nonzero(weights))
    lost = 8 * EPSILON  # a quotient each, its square; two sums that are rounded once, one of them squared; a quotient
    return min(float(positive), fieller.effective_items(weights) * (1.0 + lost))


def student(contrasts: NDArray[Any]) -> float:
    """Return P[T >= mean / stderr], one-sided; 0, 1/2 or 1 where the contrasts do not vary."""
    mean, spread = contrasts.mean(), contrasts.std(ddof=1)
    if spread == 0:
        return 0.5 - 0.5 * float(np.sign(mean))
    n = len(contrasts)
    return float(t.sf(mean / spread * math.sqrt(n), n - 1))


def leak(metric: str, before: NDArray[Any], after: NDArray[Any], quantized: Mapping[str, NDArray[Any]]) -> Leak | None:
    """Count items that a format gives back at least HALF of what unlearning took from them; None where it took nothing.

    Asked are the items from which it took at least HALF of the mean that it took: of the others, noise alone would
    give back half. An item counts once in the union, however many formats leak it: the union is one number, with one
    interval. Formats are tested against MATERIAL exactly, and corrected for their number.

    Args:
        metric: name of a metric of which more means more knowledge.
        before: items of the target, (n,).
        after: items of the unlearned model.
        quantized: items of the quantized unlearned model, by format.
    """
    taken = np.asarray(before, np.float64) - np.asarray(after, np.float64)
    if taken.mean() <= 0:
        return None
    asked = taken >= HALF * taken.mean()
    n = int(asked.sum())
    back = {name: (np.asarray(q) - after)[asked] >= HALF * taken[asked] for name, q in quantized.items()}
    counts = {name: int(b.sum()) for name, b in back.items()}
    union = int(np.any(list(back.values()), axis=0).sum())
    low, high = clopper_pearson(union, n, LEVEL / 2)
    p = np.array([binom.sf(k - 1, n, MATERIAL) for k in counts.values()])
    rejected = false_discoveries(p, LEVEL, dependent=True).rejected
    return Leak(
        metric=metric,
        items=n,
        formats=counts,
        leaking=[name for name, hit in zip(counts, rejected, strict=True) if hit],
        union=union,
        share=union / n,
        low=low,
        high=high,
    )


def mean_of(items: Sequence[float] | NDArray[Any]) -> Mean:
    """Return the mean and its standard error, which is None for a single item."""
    values = np.asarray(items, np.float64)
    n = len(values)
    stderr = float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    return Mean(value=float(values.mean()), stderr=stderr, n=n)
