"""The table of a study that asks for runs, as Markdown.

Read are `study.json`, in which `experiments/studies/runs.py` left the settings, and the runs in the folders beside it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unforgotten.records.depths import words
from unforgotten.records.rows import Run, read_run
from unforgotten.reports.labels import number, precision_label
from unforgotten.reports.predicted import outcomes, range_text


def render(folder: Path) -> Mapping[str, str]:
    """Return the files made of the study's rows: `table.md`."""
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    return {"table.md": runs_table(folder, study) + predicted_table(folder, study)}


def runs_table(folder: Path, study: Mapping[str, Any]) -> str:
    """Return a line for each combination of levels, method, arm and format, a column for each metric shown.

    A cell has the mean over the seeds, and with several seeds the lowest and the highest value. Undefined values are left
    out, and how many seeds have one is said.

    Args:
        folder: folder of the study.
        study: question and settings, as in `study.json`.
    """
    settings = study["settings"]
    shown, others = settings["show"], settings.get("seeds_of", {})
    combinations = list(itertools.product(*settings["vary"].values()))
    found = [
        [read_run(folder / "-".join([*levels, f"seed{seed}"])) for seed in _seeds(settings, levels)]
        for levels in combinations
    ]
    named_seeds = [_listed(settings["seeds"]), *(f"{level}: {_listed(seeds)}" for level, seeds in others.items())]
    deep = ["depth"] if any(run.depths for runs in found for run in runs) else []
    heads = [*settings["vary"], *deep, "method", "storage", "format", *shown]
    lines = [f"{study['question']} Seeds: {'; '.join(named_seeds)}.", "", _line(heads), _line(["---"] * len(heads))]
    for levels, runs in zip(combinations, found, strict=True):
        for depth in dict.fromkeys(one.depth for run in runs for one in run.by_depth()):
            there = [one for run in runs for one in run.by_depth() if one.depth == depth]
            named = ["–" if depth is None else words(depth)] if deep else []
            lines += [_line([*levels, *named, *cells]) for cells in _cells(there, shown)]
    return "\n".join(lines) + "\n"


def _seeds(settings: Mapping[str, Any], levels: Sequence[str]) -> Sequence[int]:
    """Return the seeds of a combination of levels, as `experiments/studies/runs.py` takes them."""
    seeds: Sequence[int] = settings["seeds"]
    for level in levels:
        seeds = settings.get("seeds_of", {}).get(level, seeds)
    return seeds


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def predicted_table(folder: Path, study: Mapping[str, Any]) -> str:
    """Return a line for each prediction: what it says, its range, what was seen and whether it came true; empty without any.

    Args:
        folder: folder of the study.
        study: question and settings, as in `study.json`.
    """
    heads = ["predicted before the runs", "metric", "range", "seen", "cells inside", "came true"]
    lines = [
        [
            *(told.says, told.metric, range_text(told.low, told.high)),
            _spread(told.metric, told.values),
            *(f"{told.held} of {told.cells}", told.word),
        ]
        for told in outcomes(folder, study)
    ]
    return "\n".join(["", *map(_line, [heads, ["---"] * len(heads), *lines])]) + "\n" if lines else ""


def _spread(metric: str, values: Sequence[float]) -> str:
    return f"{number(metric, min(values))} to {number(metric, max(values))}" if values else "–"


def _cells(runs: Sequence[Run], shown: Sequence[str]) -> Iterator[list[str]]:
    for method, storage in runs[0].arms:
        for name in ("none", *runs[0].formats):
            values = ([run.value(metric, "unlearned", method, storage, name) for run in runs] for metric in shown)
            cells = [
                _value(metric, [v for v in of if v is not None], len(runs))
                for metric, of in zip(shown, values, strict=True)
            ]
            yield [method, storage, precision_label(name), *cells]


def _value(metric: str, values: Sequence[float], runs: int) -> str:
    if not values:
        return "–"
    mean = number(metric, sum(values) / len(values))
    if runs == 1:
        return mean
    spread = f"{mean} ({number(metric, min(values))} to {number(metric, max(values))})"
    return spread if len(values) == runs else f"{spread}, {len(values)} of {runs}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
