"""What quantization does to an update, from the items of a metric on several models: T14 and T16.

In go the items of one metric, an item a text or question, on "target", "unlearned", "Q(target)" and "Q(unlearned)", and for
T14 on two mixed models too, whose weights `hybrid_states` makes. Out come effects and recoveries, as rows of a run or as
rows of an audit:

    effects("M1", items).gating.value
    recovery("M1", items)["rho"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from unforgotten.audit.verdict.evidence import Items as FourItems
from unforgotten.audit.verdict.evidence import recovery_row
from unforgotten.audit.verdict.legs import Effects, RecoveryRow
from unforgotten.experiments.metrics.items import as_mean, of_items
from unforgotten.experiments.models.states import LazyState
from unforgotten.experiments.quantizers.quantizer import State
from unforgotten.records.store import Measurement
from unforgotten.theory.models.decomposition import lost_effect
from unforgotten.theory.models.fieller import recovery_interval

FOUR = ("target", "unlearned", "Q(target)", "Q(unlearned)")
MIXED = ("target+D", "Q(target)+delta")
Items = Mapping[str, Sequence[float]]
"""Items of each metric, of one model."""


class Decomposition(NamedTuple):
    """T14 of one metric: lost effect = gating + base shift, each with its items."""

    lost: Measurement
    gating: Measurement
    base_shift: Measurement

    def as_row(self, metric: str) -> Effects:
        """Return the effects as `audit.json` holds them."""
        return Effects(
            metric=metric, lost=as_mean(self.lost), gating=as_mean(self.gating), base_shift=as_mean(self.base_shift)
        )


def hybrid_states(
    names: Sequence[str], target: State, unlearned: State, q_target: State, q_unlearned: State
) -> dict[str, State]:
    """Return the two mixed models of T14: the target with the surviving update, and Q(target) with the whole update.

    What no quantizer touches, all but `names` (embeddings, norms), takes the whole update in both.
    """
    touched = set(names)

    def surviving(k: str) -> Tensor:
        return target[k] + (q_unlearned[k] - q_target[k]) if k in touched else unlearned[k]

    def whole(k: str) -> Tensor:
        return q_target[k] + (unlearned[k] - target[k]) if k in touched else unlearned[k]

    return {"target+D": LazyState(target, surviving), "Q(target)+delta": LazyState(target, whole)}


def effects(metric: str, items: Mapping[str, Items]) -> Decomposition:
    """Return T14 of one metric: linear in the items, so each effect has a value for every item.

    Args:
        metric: name of the metric.
        items: items of the FOUR and the MIXED models.
    """
    found = [
        lost_effect(w=w, w_new=u, q=q, q_new=qu, w_plus_d=d, q_plus_delta=qd)
        for w, u, q, qu, d, qd in zip(*(items[name][metric] for name in (*FOUR, *MIXED)), strict=True)
    ]
    suffix = "" if metric == "forget_loss" else f"_{metric}"
    return Decomposition(
        of_items(f"lost_effect{suffix}", [e.total for e in found]),
        of_items(f"gating_effect{suffix}", [e.gating for e in found]),
        of_items(f"base_shift_effect{suffix}", [e.base_shift for e in found]),
    )


def recovery(metric: str, items: Mapping[str, Items]) -> RecoveryRow:
    """Return T16 of one metric with the tests that a verdict reads, from the items of the FOUR models."""
    return recovery_row(metric, _four(metric, items), loss=metric.endswith("loss"))


def recovered(metric: str, items: Mapping[str, Items]) -> Measurement:
    """Return T16 of one metric as a row of a run, "rho_METRIC", from the items of the FOUR models.

    Its interval is Fieller's with pseudo-items, as an audit prints it, and has no standard error. Rows of the published
    runs have a paired bootstrap's, with one.

    Args:
        metric: name of the metric.
        items: items of the FOUR models.
    """
    four = _four(metric, items)
    r = recovery_interval(four.unlearned, four.quantized_unlearned, four.quantized_target)
    value = r.rho if r.defined else float("nan")  # written as null: undefined, never a number
    return Measurement(f"rho_{metric}", value, None, len(four.unlearned), interval=(r.low, r.high))


def _four(metric: str, items: Mapping[str, Items]) -> FourItems:
    return FourItems(*(np.asarray(items[name][metric]) for name in FOUR))
