"""Predicted gains of a run: what is told, of which models, and that the motion of the pair is read from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

pytest.importorskip("pydantic", reason="the package of runs needs unforgotten[experiments]")

from unforgotten.experiments.studies.gain_predictions import KINDS, predictions
from unforgotten.experiments.studies.registry import load_study
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.laws.update import survival

LR, STEPS, SHAPE = 1e-5, 40, (256, 256)
MATRIX = "model.layers.0.self_attn.q_proj.weight"
EDGE = 2.0**-8  # bfloat16 at lr 1e-5: 2^(e - 8) > lr (T4)
SIGNS = np.random.default_rng(1).choice([-1.0, 1.0], SHAPE)
FORMATS = ("int4-g64", "int8-row")
MARGIN = 0.1  # of a predicted gain, `theory/README.md#conjectures`


def save(folder: Path, w: np.ndarray[Any, Any]) -> None:
    folder.mkdir(parents=True)
    save_file({MATRIX: w}, folder / "model.safetensors")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Weights of std 0.02; fp32: all move by 40 lr; bf16: those below the edge do, and a row of those above."""
    w = np.random.default_rng(0).normal(0, 0.02, SHAPE).astype(ml_dtypes.bfloat16)
    wide = w.astype(np.float32)
    moved = (np.abs(wide) < EDGE) | (np.arange(SHAPE[0]) == 0)[:, None]
    arms = {
        "fp32": (wide + STEPS * LR * SIGNS).astype(np.float32),
        "bf16": np.where(moved, wide + 2 * EDGE / 128 * SIGNS, wide).astype(ml_dtypes.bfloat16),
    }
    save(tmp_path / "models/target", w)
    rows = []
    for storage, w_new in arms.items():
        save(tmp_path / f"models/unlearned-GA-{storage}", w_new)
        for name in FORMATS:
            left = survival(wide, w_new.astype(np.float32), format_named(name), "adaptive")
            rows.append(
                {
                    "metric": "gain",
                    "method": "GA",
                    "storage": storage,
                    "format": name,
                    "lr": LR,
                    "steps": STEPS,
                    "seed": 0,
                    "revision": "r",
                    "value": left.gain,
                }
            )
    rows.append(rows[0] | {"metric": "cosine", "value": 0.5})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


def test_every_gain_has_each_kind_of_prediction(run: Path) -> None:
    found = [(r["storage"], r["format"], r["kind"]) for r in predictions(run)]
    assert found == [(s, f, k) for s in ("fp32", "bf16") for f in FORMATS for k in KINDS]


def test_beyond_counts_what_steps_of_lr_cannot_move(run: Path) -> None:
    w = np.random.default_rng(0).normal(0, 0.02, SHAPE).astype(ml_dtypes.bfloat16)
    inside = (np.abs(w.astype(float)) > EDGE) & (np.abs(w.astype(float)) < 2 * EDGE)
    shares = {r["storage"]: r["beyond"] for r in predictions(run)}
    assert shares["bf16"] == inside[0].sum() / inside.sum()


def test_predictions_differ_by_what_they_know(run: Path) -> None:
    """Nominal knows nothing of the row beyond the edge; the pair's motion does, and all agree in fp32."""
    rows = {(r["storage"], r["format"], r["kind"]): r for r in predictions(run)}
    for name in FORMATS:
        measured = rows["fp32", name, "nominal"]["measured"]
        gains = [rows["fp32", name, kind]["predicted"] for kind in KINDS]
        assert np.abs(np.array(gains) - measured).max() < MARGIN
    motion, nominal = (rows["bf16", "int4-g64", k] for k in ("motion", "nominal"))
    assert abs(motion["predicted"] - motion["measured"]) < MARGIN
    assert motion["predicted"] != nominal["predicted"]


def test_rows_of_the_runs_are_written_beside_the_study(run: Path, tmp_path: Path) -> None:
    load_study("gain-predictions", [f"runs=[{run}]"]).measure(tmp_path / "study")
    written = (tmp_path / "study" / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == list(predictions(run))
