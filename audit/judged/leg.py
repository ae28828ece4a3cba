"""From the items of models to the behaviour leg, on which the audit's rule decides.

leg = judged_leg(files, {"Q4_K_M": (quantized_target, quantized_unlearned)}, metrics)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.judged.items import ModelItems
from unforgotten.audit.judged.metrics import KINDS, JudgedMetric, known
from unforgotten.audit.verdict.asked import items_sha256
from unforgotten.audit.verdict.evidence import Items, leak, mean_of, recovery_row
from unforgotten.audit.verdict.legs import BehaviourFormat, BehaviourLeg, Leak, Mean

LEAST_ITEMS = 2
SHOWN = 3
"""Ids that a note names."""
Values = NDArray[np.float64]


class Models(NamedTuple):
    """The items of the models: of both in full precision, of both in each format, and of the retrained model if there is one."""

    target: ModelItems
    unlearned: ModelItems
    quantized: Mapping[str, tuple[ModelItems, ModelItems]]
    retrained: ModelItems | None = None

    def named(self) -> dict[str, ModelItems]:
        """Return those that a verdict rests on, by what notes call them."""
        both = {
            f"{side} in {name}": items
            for name, pair in self.quantized.items()
            for side, items in zip(("target", "unlearned"), pair, strict=True)
        }
        return {"target": self.target, "unlearned": self.unlearned, **both}


def judged_leg(models: Models, benchmark: str, told: Mapping[str, JudgedMetric]) -> BehaviourLeg:
    """Return the behaviour leg of the items that all models have.

    Args:
        models: items of the models.
        benchmark: what the leg calls the evaluation.
        told: what a user says of metrics, by the harness's names.

    Raises:
        ValueError: no metric that decides is in all files, two metrics are one to the verdict, one has fewer than two items in common,
            or a value lies outside of its range; one line.
    """
    notes: list[str] = [note for items in (*models.named().values(), models.retrained) if items for note in items.notes]
    metrics = _metrics(models, told, notes)
    ids = {name: _common(models, name, notes) for name in metrics}
    table = {
        who: {metric.name: _values(items, name, metric, ids[name]) for name, metric in metrics.items()}
        for who, items in models.named().items()
    }
    kinds = {metric.name: metric for metric in metrics.values()}
    formats = [_format(name, table, kinds) for name in models.quantized]
    deciding = [name for name, metric in kinds.items() if metric.kind == "forget"]
    leg = BehaviourLeg(
        benchmark=benchmark,
        metrics={who: _means(table[who]) for who in ("target", "unlearned")},
        formats=formats,
        leaks=list(_leaks(table, deciding, list(models.quantized))),
        notes=notes,
        deciding=deciding,
        retained=[name for name, metric in kinds.items() if metric.kind == "retain"],
        items_sha256=items_sha256(
            {metric.name: _asked(models.target, name, ids[name]) for name, metric in metrics.items()}
        ),
    )
    if models.retrained is not None:
        leg["metrics"]["retrained"] = _retrained(models.retrained, metrics)
    return leg


def _asked(items: ModelItems, name: str, ids: Sequence[str]) -> list[list[str]]:
    """Return ids with their texts, in an order that is not that of the file."""
    texts = items.texts.get(name, {})
    return [[i, texts.get(i, "")] for i in sorted(ids)]


def _metrics(models: Models, told: Mapping[str, JudgedMetric], notes: list[str]) -> dict[str, JudgedMetric]:
    """Return the metrics that all models have and whose meaning is known, by the harness's names, the deciding first."""
    named = models.named()
    everywhere = [name for name in models.target.values if all(name in items.values for items in named.values())]
    for name in dict.fromkeys(name for items in named.values() for name in items.values):
        if name not in everywhere:
            without = [who for who, items in named.items() if name not in items.values]
            notes.append(f"{name} is not judged: {', '.join(without)} has no items of it.")
    for name in told:
        if name not in everywhere:
            raise ValueError(f"--metric must name one of {', '.join(everywhere)}, got {name!r}")
    found: dict[str, JudgedMetric] = {}
    for name in everywhere:
        metric = told.get(name) or known(name)
        if metric is None:
            notes.append(f"{name} is not judged: say what it means, as --metric '{name}=forget'.")
            continue
        if metric.name in {other.name for other in found.values()}:
            raise ValueError(f"{models.target.source}: must hold {metric.name} once, got it as {name} too")
        found[name] = metric
    if not any(metric.kind == "forget" for metric in found.values()):
        rule = "must have a metric of what was to be forgotten in all files; say which, as --metric NAME=forget"
        raise ValueError(f"{models.target.source}: {rule}, got {', '.join(everywhere) or 'none in common'}")
    return dict(sorted(found.items(), key=lambda pair: (KINDS.index(pair[1].kind), pair[1].name)))


def _common(models: Models, metric: str, notes: list[str]) -> list[str]:
    """Return the ids that all models have, in the target's order, and note what does not match."""
    named = {who: items.values[metric] for who, items in models.named().items()}
    ids = [i for i in named["target"] if all(i in items for items in named.values())]
    every = dict.fromkeys(i for items in named.values() for i in items)
    odd = [i for i in every if i not in set(ids)]
    if odd:
        first = ", ".join(f"{i} (not of {_without(named, i)})" for i in odd[:SHOWN])
        more = f" and {len(odd) - SHOWN} more" if len(odd) > SHOWN else ""
        notes.append(f"{metric}: {len(odd)} of {len(every)} items do not match and were left out: {first}{more}.")
    if len(ids) < LEAST_ITEMS:
        rule = f"{metric} must have at least {LEAST_ITEMS} items of equal ids in all files"
        raise ValueError(f"{models.unlearned.source}: {rule}, got {len(ids)}")
    return ids


def _without(named: Mapping[str, Mapping[str, float]], identity: str) -> str:
    return ", ".join(who for who, items in named.items() if identity not in items)


def _values(items: ModelItems, name: str, metric: JudgedMetric, ids: Sequence[str]) -> Values:
    values = np.array([items.values[name][i] for i in ids])
    for i, value in zip(ids, values.tolist(), strict=True):
        low, high = metric.low, metric.high
        if (low is not None and value < low) or (high is not None and value > high):
            ends = f"from {low:g} on" if high is None else f"in [{low:g}, {high:g}]"
            raise ValueError(f"{items.source}: {name}: values must be {ends}, got {value!r} for item {i}")
    return metric.unit * values


def _format(name: str, table: Mapping[str, Mapping[str, Values]], kinds: Mapping[str, JudgedMetric]) -> BehaviourFormat:
    sides = {"Q(target)": f"target in {name}", "Q(unlearned)": f"unlearned in {name}"}
    order = ("target", "unlearned", *sides.values())
    recoveries = [
        recovery_row(metric, Items(*(table[who][metric] for who in order)), loss=kind.falls)
        for metric, kind in kinds.items()
        if kind.kind.startswith("forget")
    ]
    metrics = {side: _means(table[who]) for side, who in sides.items()}
    return BehaviourFormat(format=name, metrics=metrics, recoveries=recoveries, effects=[])


def _leaks(
    table: Mapping[str, Mapping[str, Values]], deciding: Sequence[str], formats: Sequence[str]
) -> Iterator[Leak]:
    for metric in deciding:
        quantized = {name: table[f"unlearned in {name}"][metric] for name in formats}
        found = leak(metric, table["target"][metric], table["unlearned"][metric], quantized)
        if found is not None:
            yield found


def _means(values: Mapping[str, Values]) -> dict[str, Mean]:
    return {name: mean_of(items) for name, items in values.items()}


def _retrained(items: ModelItems, metrics: Mapping[str, JudgedMetric]) -> dict[str, Mean]:
    there = {name: metric for name, metric in metrics.items() if items.values.get(name)}
    return {
        metric.name: mean_of(_values(items, name, metric, list(items.values[name]))) for name, metric in there.items()
    }
