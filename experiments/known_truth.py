"""Pairs of known truth for the verdict, where the truth is not made of the numbers that the verdict reads.

"halves": the pairs of published runs. The verdict sees every other passage, with its questions; the truth is rho on the
passages that it did not see. Each half is both in turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unforgotten.audit.evidence import MATERIAL
from unforgotten.audit.legs import BehaviourLeg
from unforgotten.audit.verdict import DECIDES_BEHAVIOUR, decide
from unforgotten.experiments.metrics import of_items
from unforgotten.experiments.pair_behaviour import RECOVERED, leg_of
from unforgotten.experiments.rows import Measurement, Subject

MARGIN = (
    1 / 6
)  # a truth nearer to MATERIAL than this is on the border: half the items cannot tell it
Runs = Mapping[str, Mapping[str, Measurement]]


class Truth(NamedTuple):
    """The largest rho over formats and deciding metrics, or None where nothing was removed; `clear` off the border."""

    rho: float | None
    where: str | None

    @property
    def word(self) -> str | None:
        """What the verdict should be."""
        if self.rho is None:
            return None
        return "undone" if self.rho >= MATERIAL else "survives"

    @property
    def clear(self) -> bool:
        """Whether it is further than MARGIN from the border."""
        return self.rho is not None and abs(self.rho - MATERIAL) >= MARGIN


class PublishedPair(NamedTuple):
    """One unlearned model of a run, with the target's and its own measurements by format."""

    run: str
    method: str
    storage: str
    base: Runs
    after: Runs


def published_pairs(folder: Path) -> Iterator[PublishedPair]:
    """The pairs of a run, from its files of items."""
    config = json.loads((folder / "config.json").read_text())
    chosen = config.get("only_methods") or list(config["unlearning"]["methods"])
    formats = ("none", *config["formats"])
    base = {f: _measured(folder, Subject("target", format=f)) for f in formats}
    for method in chosen:
        for storage in config["storages"]:
            subjects = {f: Subject("unlearned", method, storage, f) for f in formats}
            after = {f: _measured(folder, subject) for f, subject in subjects.items()}
            yield PublishedPair(folder.name, method, storage, base, after)


def _measured(folder: Path, subject: Subject) -> dict[str, Measurement]:
    items = json.loads((folder / f"items/{subject.key}.json").read_text())
    return {metric: of_items(metric, items[metric]) for metric in RECOVERED}


def half(runs: Runs, fold: int) -> dict[str, dict[str, Measurement]]:
    """Every other passage, from `fold` on, with its questions, which stand in the order of the passages."""
    return {
        name: {metric: of_items(metric, _of_fold(measured, metric, fold)) for metric in measured}
        for name, measured in runs.items()
    }


def _of_fold(measured: Mapping[str, Measurement], metric: str, fold: int) -> list[float]:
    items, passages = measured[metric].items or (), len(measured["M1"].items or ())
    each = len(items) // passages
    return [x for i, x in enumerate(items) if (i // each) % 2 == fold]


def truth_of(leg: BehaviourLeg) -> Truth:
    """The largest rho of the leg, by its point estimates alone."""
    found = [
        (row["rho"], f"{row['metric']} in {f['format']}")
        for f in leg["formats"]
        for row in f["recoveries"]
        if row["metric"] in DECIDES_BEHAVIOUR and row["rho"] is not None
    ]
    return Truth(
        *max(found, default=(None, None), key=lambda x: x[0] if x[0] is not None else -np.inf)
    )


def halves(folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of both folds of every pair of a run."""
    for pair in published_pairs(folder):
        for fold in (0, 1):
            seen, kept = (
                leg_of(half(pair.base, f), half(pair.after, f), benchmark=folder.name)
                for f in (fold, 1 - fold)
            )
            verdict, truth = decide("unclear", None, seen), truth_of(kept)
            yield {
                "set": "halves",
                "run": pair.run,
                "method": pair.method,
                "storage": pair.storage,
                "fold": fold,
                "truth": truth.word,
                "clear": truth.clear,
                "rho": truth.rho,
                "where": truth.where,
                "seen": truth_of(seen).rho,
                "verdict": verdict["overall"],
                "reasons": verdict["reasons"],
            }
