"""A sample of a benchmark, for models on which all of it would take hours."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from unforgotten.experiments.metrics.probes import Probes

SEED = 0
TOGETHER = (
    ("verbatim prompts", ("verbatim_prompts", "verbatim_truths", "verbatim_tokens")),
    ("forget prompts", ("forget_prompts", "forget_answers", "forget_options")),
    ("retain prompts", ("retain_prompts", "retain_answers", "retain_options")),
    ("passages", ("passages",)),
    ("retain", ("retained",)),
    ("holdout", ("holdout",)),
)
"""What notes call a part of the benchmark, and the lists of `Probes` that belong together there."""


def sampled(probes: Probes, most: int | None) -> tuple[Probes, list[str]]:
    """Return the probes with at most `most` items of each part, in their order, and a note that says so.

    Items are drawn without replacement with seed 0, the same places in parts of one length, so that the sample depends on
    nothing but the number of items. None takes all.
    """
    if most is None:
        return probes, []
    changed: dict[str, Any] = {}
    told = []
    for called, names in TOGETHER:
        count = len(getattr(probes, names[0]))
        if count > most:
            told.append(f"{most} of {count} {called}")
            places = sorted(np.random.default_rng(SEED).choice(count, most, replace=False).tolist())
            changed |= {name: _at(getattr(probes, name), places) for name in names}
    note = f"A sample of the benchmark was measured, drawn with seed {SEED}: {', '.join(told)}."
    return dataclasses.replace(probes, **changed), [note] if told else []


def _at(items: Sequence[Any], places: Sequence[int]) -> list[Any]:
    return [items[place] for place in places]
