"""What the theory says of the gain of a run's models, beside what was measured, with nothing fitted to the gain.

Three predictions, of rising knowledge: `nominal` from the target's weights, lr, steps and dtype, every step being lr with
one sign; `ratio` with one more number, the size of the pair's free steps (`stationary_fit`); `motion` with the pair's
displacements by quarter binade, which leaves T6 and the law of the absmax alone to be tested and is no forecast.

`beyond` is the share of weights that moved in the first binade that steps of lr cannot move (T4): each of them has had a
step larger than lr, which AdamW takes where a weight's recent gradients have more energy than those of its run (T5).

Settings: the folders of the runs, with their models. The rows of all of them go to `rows.jsonl`.

    unforgotten study gain-predictions --set runs=[runs/tiny-seed0] --out runs/predictions
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.progress.stages import Progress
from unforgotten.audit.sources.checkpoint import open_checkpoint
from unforgotten.audit.sources.pairing import is_quantized
from unforgotten.experiments.section import Section
from unforgotten.experiments.studies.study import Study
from unforgotten.records.depths import state_name
from unforgotten.records.files import read_json_lines, write_json_lines
from unforgotten.theory.formats.names import Format, format_named
from unforgotten.theory.formats.reference import to_blocks
from unforgotten.theory.geometry.dead_zone import frozen_exponent
from unforgotten.theory.geometry.motion import StepLaw, step_law
from unforgotten.theory.geometry.motion_fit import Moves, observed_moves, stationary_fit, step_ratio
from unforgotten.theory.laws.absmax import AbsmaxLaw, observed_absmax
from unforgotten.theory.laws.block_law import Expected, combine
from unforgotten.theory.laws.densities import Empirical, empirical
from unforgotten.theory.laws.predict import predict, predict_moves

KINDS = ("nominal", "ratio", "motion")
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "bf16-sr": "float32"}
"""What the steps of an arm are lost in; rounded at random a step is made on average, as float32 makes it."""
KEPT = ("method", "storage", "format", "lr", "steps", "seed", "revision")
HISTOGRAM_BINS = 256
ABSMAX_NODES = 12


@dataclass(frozen=True)
class Tensor:
    """One matrix of the target: its weights and their histogram."""

    weights: NDArray[Any]
    density: Empirical

    def absmax(self, name: str) -> AbsmaxLaw:
        """Return the law of the absmax of the tensor's blocks in a format, as observed."""
        blocks = to_blocks(self.weights, format_named(name))
        return observed_absmax(np.abs(blocks).max(axis=1), blocks.shape[1], nodes=ABSMAX_NODES)


def read_tensors(folder: Path) -> dict[str, NDArray[Any]]:
    """Read the matrices of a checkpoint that quantizers touch, as float32, by name."""
    checkpoint = open_checkpoint(folder)
    names = [n for n, info in checkpoint.tensors.items() if is_quantized(n, info.shape)]
    return {name: checkpoint.read(name).astype(np.float32) for name in names}


@dataclass(frozen=True)
class Update:
    """One unlearned model: its training as its rows tell it, and its difference from the target, by tensor."""

    training: dict[str, Any]
    target: dict[str, Tensor]
    delta: dict[str, NDArray[Any]]

    @cached_property
    def moves(self) -> dict[str, Moves]:
        """The motion of each tensor, for "motion"."""
        return {name: observed_moves(t.weights, self.delta[name]) for name, t in self.target.items()}

    @cached_property
    def steps(self) -> dict[str, StepLaw]:
        """The step laws of "nominal" and "ratio"."""
        w = np.concatenate([t.weights.ravel() for t in self.target.values()])
        d = np.concatenate([self.delta[name].ravel() for name in self.target])
        ratio = step_ratio(w, d, **self.training)
        return {"nominal": step_law("adamw"), "ratio": stationary_fit(ratio)}

    @cached_property
    def beyond(self) -> float:
        """The share of weights that moved in the first binade that steps of lr cannot move."""
        edge = 2.0 ** frozen_exponent(self.training["lr"], self.training["dtype"])
        moved = weights = 0
        for name, t in self.target.items():
            inside = (np.abs(t.weights) > edge) & (np.abs(t.weights) < 2 * edge)
            moved += int((self.delta[name][inside] != 0).sum())
            weights += int(inside.sum())
        return moved / weights if weights else 0.0

    def expected(self, kind: str, fmt: Format, laws: dict[str, AbsmaxLaw]) -> Expected:
        """Return one kind of prediction for one format: the tensors' expectations, weighed by their sizes."""
        total = sum(t.weights.size for t in self.target.values())
        return combine(
            [(t.weights.size / total, self._expected(kind, fmt, laws[name], name)) for name, t in self.target.items()]
        )

    def _expected(self, kind: str, fmt: Format, law: AbsmaxLaw, name: str) -> Expected:
        density = self.target[name].density
        if kind == "motion":
            return predict_moves(fmt, density, law, self.moves[name])
        return predict(fmt, density, law, self.steps[kind], **self.training).expected


def predictions(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield one row for each unlearned model, format and kind, in the order of the run's rows."""
    rows = read_json_lines(folder / "rows.jsonl")
    target = {
        name: Tensor(w, empirical(w, HISTOGRAM_BINS)) for name, w in read_tensors(folder / "models/target").items()
    }
    laws: dict[str, dict[str, AbsmaxLaw]] = {}
    gains = [row for row in rows if row["metric"] == "gain"]
    for name, arm in groupby(gains, key=lambda r: state_name(r["method"], r["storage"], r.get("depth"))):
        unlearned = read_tensors(folder / f"models/{name}")
        first, *rest = arm
        training = {"lr": first["lr"], "steps": first["steps"], "dtype": DTYPES[first["storage"]]}
        update = Update(training, target, {k: unlearned[k] - t.weights for k, t in target.items()})
        for row in (first, *rest):
            fmt = row["format"]
            if fmt not in laws:
                laws[fmt] = {k: t.absmax(fmt) for k, t in target.items()}
            for kind in KINDS:
                e = update.expected(kind, format_named(fmt), laws[fmt])
                yield {
                    **{key: row[key] for key in KEPT},
                    **({"depth": row["depth"]} if row.get("depth") else {}),
                    "kind": kind,
                    "measured": row["value"],
                    "predicted": e.gain,
                    "cosine": e.cosine,
                    "beyond": update.beyond,
                }


class RunFolders(Section):
    """Folders of runs, with their models."""

    runs: tuple[Path, ...]


def _measure(settings: RunFolders, folder: Path, progress: Progress) -> None:
    rows: list[dict[str, Any]] = []
    for run in settings.runs:
        with progress.stage(f"predict {run.name}"):
            rows += predictions(run)
    write_json_lines(folder / "rows.jsonl", rows)


STUDY = Study(RunFolders, lambda settings: len(settings.runs), _measure)
