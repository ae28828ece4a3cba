"""What the theory says of the gain of a run's models, beside what was measured, with nothing fitted to the gain.

Three predictions, of rising knowledge: `nominal` from the target's weights, lr, steps and dtype, every step being lr with
one sign; `ratio` with one more number, the size of the pair's free steps (`stationary_fit`); `motion` with the pair's
displacements by quarter binade, which leaves T6 and the law of the absmax alone to be tested and is no forecast.

`python -m unforgotten.experiments.predictions RUN…` writes `RUN/predictions.jsonl` and prints a table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
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
from unforgotten.theory.densities import Empirical, empirical
from unforgotten.theory.formats import format_named
from unforgotten.theory.motion import StepLaw, step_law
from unforgotten.theory.motion_fit import observed_moves, stationary_fit, step_ratio
from unforgotten.theory.predict import predict, predict_moves
from unforgotten.theory.quantize import to_blocks

KINDS = ("nominal", "ratio", "motion")
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
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
            kept = {
                k: row[k]
                for k in ("method", "storage", "format", "lr", "steps", "seed", "revision")
            }
            yield {
                **kept,
                "kind": kind,
                "measured": row["value"],
                "predicted": e.gain,
                "cosine": e.cosine,
            }


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


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: for each arm and format the range measured, and of each prediction; and its largest error."""
    lines = [
        f"| arm | format | measured | {' | '.join(KINDS)} |",
        "| --- | --- | --- |" + " --- |" * len(KINDS),
    ]
    for storage, name in dict.fromkeys((r["storage"], r["format"]) for r in rows):
        cell = [r for r in rows if (r["storage"], r["format"]) == (storage, name)]
        kinds = [[r for r in cell if r["kind"] == kind] for kind in KINDS]
        cells = [
            f"{_span(r['predicted'] for r in k)} (off by {max(abs(r['predicted'] - r['measured']) for r in k):.2f})"
            for k in kinds
        ]
        lines.append(
            f"| {storage} | {name} | {_span(r['measured'] for r in cell)} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _span(values: Iterable[float]) -> str:
    values = list(values)
    return f"{min(values):.2f} to {max(values):.2f}"


def main(folders: Sequence[str]) -> None:
    """Predict for each run, write, and print one table of all."""
    rows = []
    for folder in folders:
        own = list(predictions(Path(folder)))
        write_text(Path(folder) / "predictions.jsonl", "".join(json.dumps(r) + "\n" for r in own))
        rows += own
    print(table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
