"""What the theory says of the gain of a run's models, beside what was measured, with nothing fitted to the gain.

Three predictions, of rising knowledge: `nominal` from the target's weights, lr, steps and dtype, every step being lr with
one sign; `ratio` with one more number, the size of the pair's free steps (`stationary_fit`); `motion` with the pair's
displacements by quarter binade, which leaves T6 and the law of the absmax alone to be tested and is no forecast.

`beyond` is the share of weights that moved in the first binade that steps of lr cannot move (T4): each of them has had a
step larger than lr, which AdamW takes while gradients grow (T5).

`python -m unforgotten.experiments.predictions RUN…` writes `RUN/predictions.jsonl`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.checkpoints import open_checkpoint
from unforgotten.audit.pairing import is_quantized
from unforgotten.experiments.storage import write_text
from unforgotten.theory.absmax import AbsmaxLaw, observed_absmax
from unforgotten.theory.block_law import Expected, combine
from unforgotten.theory.dead_zone import frozen_exponent
from unforgotten.theory.densities import Empirical, empirical
from unforgotten.theory.formats import format_named
from unforgotten.theory.motion import StepLaw, step_law
from unforgotten.theory.motion_fit import observed_moves, stationary_fit, step_ratio
from unforgotten.theory.predict import predict, predict_moves
from unforgotten.theory.quantize import to_blocks

KINDS = ("nominal", "ratio", "motion")
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
KEPT = ("method", "storage", "format", "lr", "steps", "seed", "revision")
HISTOGRAM_BINS = 256
ABSMAX_NODES = 12


@dataclass(frozen=True)
class Tensor:
    """One matrix of the target: its weights and their histogram."""

    weights: NDArray[Any]
    density: Empirical

    def absmax(self, name: str) -> AbsmaxLaw:
        """The law of its blocks' absmax, as observed."""
        blocks = to_blocks(self.weights, format_named(name))
        return observed_absmax(np.abs(blocks).max(axis=1), blocks.shape[1], nodes=ABSMAX_NODES)


def read_tensors(folder: Path) -> dict[str, NDArray[Any]]:
    """The quantized matrices of a checkpoint, float32."""
    checkpoint = open_checkpoint(folder)
    names = [n for n, info in checkpoint.tensors.items() if is_quantized(n, info.shape)]
    return {name: checkpoint.read(name).astype(np.float32) for name in names}


def predictions(folder: Path) -> Iterator[dict[str, Any]]:
    """One row for each unlearned model, format and kind, in the order of the run's rows."""
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    target = {
        name: Tensor(w, empirical(w, HISTOGRAM_BINS))
        for name, w in read_tensors(folder / "models/target").items()
    }
    laws: dict[str, dict[str, AbsmaxLaw]] = {}
    for row in rows:
        if row["metric"] != "gain":
            continue
        name = row["format"]
        if name not in laws:
            laws[name] = {k: t.absmax(name) for k, t in target.items()}
        unlearned = read_tensors(folder / f"models/unlearned-{row['method']}-{row['storage']}")
        delta = {k: unlearned[k] - t.weights for k, t in target.items()}
        for kind in KINDS:
            e = _expected(kind, row, target, laws[name], delta)
            kept = {name: row[name] for name in KEPT}
            beyond = _moved_beyond(row, target, delta)
            yield {
                **kept,
                "kind": kind,
                "measured": row["value"],
                "predicted": e.gain,
                "cosine": e.cosine,
                "beyond": beyond,
            }


def _moved_beyond(
    row: dict[str, Any], target: dict[str, Tensor], delta: dict[str, NDArray[Any]]
) -> float:
    edge = 2.0 ** frozen_exponent(row["lr"], DTYPES[row["storage"]])
    moved = weights = 0
    for name, t in target.items():
        inside = (np.abs(t.weights) > edge) & (np.abs(t.weights) < 2 * edge)
        moved += int((delta[name][inside] != 0).sum())
        weights += int(inside.sum())
    return moved / weights if weights else 0.0


def _expected(
    kind: str,
    row: dict[str, Any],
    target: dict[str, Tensor],
    laws: dict[str, AbsmaxLaw],
    delta: dict[str, NDArray[Any]],
) -> Expected:
    fmt = format_named(row["format"])
    total = sum(t.weights.size for t in target.values())
    law = None if kind == "motion" else _steps(kind, row, target, delta)
    parts = []
    for name, t in target.items():
        if law is None:
            e = predict_moves(fmt, t.density, laws[name], observed_moves(t.weights, delta[name]))
        else:
            e = predict(
                fmt, t.density, laws[name], law,
                lr=row["lr"], steps=row["steps"], dtype=DTYPES[row["storage"]],
            ).expected  # fmt: skip
        parts.append((t.weights.size / total, e))
    return combine(parts)


def _steps(
    kind: str, row: dict[str, Any], target: dict[str, Tensor], delta: dict[str, NDArray[Any]]
) -> StepLaw:
    if kind == "nominal":
        return step_law("adamw")
    w = np.concatenate([t.weights.ravel() for t in target.values()])
    d = np.concatenate([delta[name].ravel() for name in target])
    options = {"lr": row["lr"], "steps": row["steps"], "dtype": DTYPES[row["storage"]]}
    return stationary_fit(step_ratio(w, d, **options))


def main(folders: Sequence[str]) -> None:
    """Predict for each run, and write the rows beside its own."""
    for folder in map(Path, folders):
        path = folder / "predictions.jsonl"
        write_text(path, "".join(json.dumps(row) + "\n" for row in predictions(folder)))
        print(f"predictions: {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
