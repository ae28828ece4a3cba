"""Forecasts from a pilot's gradients beside the gains that the run's own rows hold, with nothing fitted to them.

The pilot is the method's float32 run, made anew from the run's target; its gradients stay in the run's folder as
`gradients-METHOD.npz`, and are read from there the next time. `measured` is the gain in the rows of the run. A run that ended at
its largest number of steps is replayed for as many, any other as far as the pilot went.

How far gradients turn from the first tenth of a pilot's steps to the last goes to `directions.jsonl`, see `direction`.

Settings: the folders of the runs, with `config.json`, `rows.jsonl` and `models/target`; methods, of each run those that it has;
storages and formats. The rows of all of them go to `rows.jsonl`.

    unforgotten study forecast --set runs=[runs/tiny-seed0] --out runs/forecast
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from unforgotten.audit.progress.stages import Progress, Step
from unforgotten.experiments.own import label_of
from unforgotten.experiments.pilot import config_of, pilot
from unforgotten.experiments.run import revision
from unforgotten.experiments.section import Section
from unforgotten.experiments.studies.study import Study
from unforgotten.records.files import read_json_lines, write_json_lines
from unforgotten.records.gradients import Gradients, read_gradients, write_gradients
from unforgotten.records.packed_rows import ROWS_FILE
from unforgotten.theory.calculators.forecast import Pilot, Replayed, forecast, replayed
from unforgotten.theory.geometry.replay import Adam, Storage

DIRECTIONS_FILE = "directions.jsonl"


class Forecasts(Section):
    """What is forecast.

    Attributes:
        runs: folders of runs.
        methods: methods, of each run those that it has.
        looked_at: those of them whose errors were known when the replay was designed.
        storages, formats: names.
    """

    runs: tuple[Path, ...]
    looked_at: tuple[str, ...] = ()
    methods: tuple[str, ...] = Field(min_length=1)
    storages: tuple[Storage, ...] = Field(min_length=1)
    formats: tuple[str, ...] = Field(min_length=1)


def recorded(folder: Path, method: str, step: Step) -> Gradients:
    """Return the gradients of a method's pilot, read where an earlier call left them."""
    path = folder / f"gradients-{label_of(method)}.npz"
    if not path.exists():
        write_gradients(path, pilot(folder, method, progress=step))
    return read_gradients(path)


def forecasts(folder: Path, method: str, gradients: Gradients, settings: Forecasts) -> Iterator[dict[str, Any]]:
    """Yield a row for each storage and format of a method that the run has measured, at the deepest of several depths."""
    wanted = ("gain", label_of(method))
    gains = [row for row in read_json_lines(folder / ROWS_FILE) if (row["metric"], row["method"]) == wanted]
    measured = {(row["storage"], row["format"]): row for row in sorted(gains, key=lambda row: row["steps"])}
    sample = Pilot(
        gradients.weights, gradients.row_absmax, gradients.gradients, gradients.lr, Adam(**gradients.settings)
    )
    for storage in settings.storages:
        rows = [measured[storage, f] for f in settings.formats if (storage, f) in measured]
        for steps, ended in groupby(rows, _given_steps):
            yield from _rows(
                sample, replayed(sample, storage, steps=steps), list(ended), looked_at=method in settings.looked_at
            )


def _given_steps(row: dict[str, Any]) -> int | None:
    """Return the number of steps that ended a run; None where the depth of forgetting did."""
    return int(row["steps"]) if row.get("stopped") in ("max_steps", "steps") else None


def _rows(
    sample: Pilot, path: Replayed, measured: Sequence[dict[str, Any]], *, looked_at: bool
) -> Iterator[dict[str, Any]]:
    for row in measured:
        told = forecast(sample, path, row["format"])
        yield {
            **{key: row[key] for key in ("method", "storage", "format", "seed", "lr")},
            "measured": row["value"],
            "measured_revision": row["revision"],
            "predicted": told.gain,
            "range": list(told.gain_range),
            "functional_gain": told.functional_gain,
            "functional_range": list(told.functional_range),
            "steps": row["steps"],
            "pilot_steps": len(sample.lr),
            "replayed_steps": path.steps,
            "slower": path.slower,
            "progress": path.progress,
            "stopped": row.get("stopped"),
            "looked_at": looked_at,
            "blocks": len(sample.weights),
            "revision": revision(),
        }


def direction(gradients: NDArray[np.float32]) -> dict[str, Any]:
    """Return how far recorded gradients turn and grow from the first tenth of the steps to the last.

    `cosine`: of the two mean gradients. `within_first`, `within_last`: cosine of the means of both halves of a tenth, what
    noise of the batches and turning within it leave of 1; None for a tenth of one step. `norm_first`, `norm_last`: mean
    norm of a step's gradient over the sampled weights, after clipping. `tenth`: steps of a tenth, rounded down.

    Args:
        gradients: gradients of each step, (steps, blocks, 64), at least ten steps.
    """
    steps = len(gradients)
    tenth = steps // 10
    flat = gradients.reshape(steps, -1).astype(np.float64)
    first, last = flat[:tenth], flat[-tenth:]
    return {
        "steps": steps,
        "tenth": tenth,
        "cosine": _cosine(first.mean(0), last.mean(0)),
        "within_first": _within(first),
        "within_last": _within(last),
        "norm_first": float(np.linalg.norm(first, axis=1).mean()),
        "norm_last": float(np.linalg.norm(last, axis=1).mean()),
    }


def _within(some: NDArray[np.float64]) -> float | None:
    middle = len(some) // 2
    return _cosine(some[:middle].mean(0), some[middle:].mean(0)) if middle else None


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Return the cosine of two vectors; None where one is 0."""
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else None


def directions(settings: Forecasts) -> Iterator[dict[str, Any]]:
    """Yield `direction` of every pilot whose gradients are in its run's folder."""
    for run in settings.runs:
        config = config_of(run)
        for method in settings.methods:
            path = run / f"gradients-{label_of(method)}.npz"
            if method in config.methods and path.exists():
                found = read_gradients(path)
                told = direction(found.gradients)
                yield {"method": label_of(method), "seed": config.seed, **told, "blocks": len(found.weights)}


def _measure(settings: Forecasts, folder: Path, progress: Progress) -> None:
    known = {run: config_of(run).methods for run in settings.runs}
    if missing := set(settings.methods).difference(*known.values()):
        raise ValueError(f"methods must be of one of the runs, got {', '.join(sorted(missing))}")
    rows: list[dict[str, Any]] = []
    for run in settings.runs:
        for method in settings.methods:
            if method not in known[run]:
                progress.skip()
                continue
            with progress.stage(f"{run.name} {method}") as step:
                rows += forecasts(run, method, recorded(run, method, step), settings)
    write_json_lines(folder / ROWS_FILE, rows)
    write_json_lines(folder / DIRECTIONS_FILE, directions(settings))


STUDY = Study(Forecasts, lambda settings: len(settings.runs) * len(settings.methods), _measure)
