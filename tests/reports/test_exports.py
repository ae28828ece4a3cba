"""Rows of a run in the files of other programs: every value is the row's, in the unit that they have there."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from unforgotten.records.items import PACKED
from unforgotten.records.rows import Run, read_run
from unforgotten.reports.exports.export import export, exporters
from unforgotten.reports.exports.measured_models import measured_models

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "reports/published/tiny-seed0"
ARM = ("unlearned", "NPO_GDR", "bf16")
NAME = "unlearned-NPO_GDR-bf16-int4-g64"
MEAN_ROUNDING = 1e-13
"""Of a mean of some hundred items in float64, added up in another order: as many roundings of 2^-53."""


@pytest.fixture(scope="module")
def run() -> Run:
    return read_run(PUBLISHED)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_models_are_those_of_the_rows_and_none_of_pairs(run: Run) -> None:
    models = {model.name: model for model in measured_models(PUBLISHED)}
    subjects = {(r.model, r.method, r.storage, r.format) for r in run.rows}
    assert len(models) == len(subjects)
    assert set(models["target"].rows) == set(models[NAME].rows) == {r.metric for r in run.rows if r.model == "target"}
    for model in models.values():
        assert set(model.items) == {"M1", "M2", "M4", "forget_loss", "retain_loss"}  # items of auc are scores of texts
        for metric, items in model.items.items():
            value = model.value(metric)
            assert value is not None
            assert len(items) == model.rows[metric].n
            assert math.fsum(items) / len(items) == pytest.approx(value, rel=MEAN_ROUNDING)


def test_muse__has_a_line_of_each_model(run: Run, tmp_path: Path) -> None:
    paths = export(PUBLISHED, "muse", tmp_path / "out")
    assert [path.name for path in paths] == ["muse.csv"]
    with paths[0].open(newline="") as stream:
        lines = {line["name"]: line for line in csv.DictReader(stream)}
    named = {"verbmem_f": "M1", "privleak": "M3", "knowmem_f": "M2", "knowmem_r": "M4"}
    assert list(next(iter(lines.values()))) == ["name", *named]
    for column, metric in named.items():
        assert float(lines[NAME][column]) == run.value(metric, *ARM, "int4-g64")
        assert float(lines["target"][column]) == run.value(metric, "target")
    assert lines["base"]["privleak"] == ("" if run.value("M3", "base") is None else repr(run.value("M3", "base")))


def test_openunlearning__has_shares_and_items(run: Run, tmp_path: Path) -> None:
    export(PUBLISHED, "openunlearning", tmp_path / "out")
    logs, summary = (read(tmp_path / "out" / NAME / f"MUSE_{kind}.json") for kind in ("EVAL", "SUMMARY"))
    for name, metric in (
        ("forget_verbmem_ROUGE", "M1"),
        ("forget_knowmem_ROUGE", "M2"),
        ("retain_knowmem_ROUGE", "M4"),
    ):
        row = run.get(metric, *ARM, "int4-g64")
        assert row is not None
        assert row.value is not None
        assert summary[name] == logs[name]["agg_value"] == row.value / 100
        assert list(logs[name]["value_by_index"]) == [str(i) for i in range(row.n or 0)]
        assert all(0 <= item["rougeL_f1"] <= 1 for item in logs[name]["value_by_index"].values())
    assert summary["privleak"] == run.value("M3", *ARM, "int4-g64")
    assert list(logs) == sorted(logs)


def test_lm_eval__has_values_errors_and_samples(run: Run, tmp_path: Path) -> None:
    paths = export(PUBLISHED, "lm-eval", tmp_path / "out")
    own = [path for path in paths if path.parent.name == NAME]
    (results,) = [read(path) for path in own if path.name.startswith("results_")]
    row = run.get("M1", *ARM, "int4-g64")
    assert row is not None
    assert results["results"]["unforgotten_M1"] == {
        "alias": "M1",
        "value,none": row.value,
        "value_stderr,none": row.stderr,
    }
    assert results["higher_is_better"]["unforgotten_M1"] == {"value": True}
    assert "unforgotten_M3" not in results["higher_is_better"]
    assert results["model_name"] == NAME
    (samples,) = [path for path in own if path.name.startswith("samples_unforgotten_M1_")]
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [line["doc_id"] for line in lines] == list(range(row.n or 0))
    assert math.fsum(line["value"] for line in lines) / len(lines) == pytest.approx(row.value, rel=MEAN_ROUNDING)


def copied(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(PUBLISHED / "rows.jsonl", folder)
    shutil.copy(PUBLISHED / PACKED, folder)
    return folder


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    with pytest.raises(ValueError, match=r"--as must be one of lm-eval, muse, openunlearning, got 'csv'"):
        export(folder, "csv", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(ValueError, match=r"full: must be empty or missing, got other files"):
        export(folder, "muse", tmp_path / "full")
    with pytest.raises(ValueError, match="none"):
        export(tmp_path / "none", "muse", tmp_path / "out")
    (folder / PACKED).unlink()
    with pytest.raises(ValueError, match=r"items/[a-z0-9-]*\.json: must be the items that the rows of the run name"):
        export(folder, "muse", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    command = [sys.executable, "-m", "unforgotten.cli", "export", str(folder), "--as", "muse", "--json"]
    done = subprocess.run(command, text=True, capture_output=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"files": [str(folder / "export-muse/muse.csv")]}
    again = subprocess.run(command, text=True, capture_output=True, check=False, env=dict(os.environ))
    assert again.returncode == 2
    assert again.stderr == f"unforgotten: {folder}/export-muse: must be empty or missing, got other files\n"


def test_help_names_every_program() -> None:
    from datetime import UTC, datetime

    source = (ROOT / "src/unforgotten/cli.py").read_text()
    names = list(exporters(datetime.fromtimestamp(0, UTC)))
    assert all(name in source.split("def export(")[1].split("def study(")[0] for name in names)
