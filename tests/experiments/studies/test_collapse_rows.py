"""The study `collapse`: what it reads of runs, and that the published rows are of all published runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from unforgotten.audit.progress.stages import SILENT
from unforgotten.experiments.studies.collapse import LEAST_EFFECT, STUDY, PublishedSettings
from unforgotten.records.files import read_json_lines
from unforgotten.records.packed_rows import rows_content
from unforgotten.records.rows import read_run
from unforgotten.reports.run import conjectures

PUBLISHED = Path(__file__).parents[3] / "reports/published"
RUN = Path(__file__).parents[2] / "reports/small_runs/one-arm-seed0"
FLOAT64 = 2.0**-40
"""Of a quotient of differences in float64."""


def measured(published: Path, out: Path) -> list[dict[str, object]]:
    out.mkdir()
    STUDY.measure(PublishedSettings(published=published), out, SILENT)
    return read_json_lines(out / "rows.jsonl")


def copied(folder: Path, change: dict[str, float]) -> Path:
    """The published run as one of a study, with the values of some metrics of the unlearned model at int4-g64 or in none."""
    place = folder / "published/some-study/run"
    place.mkdir(parents=True)
    shutil.copy(RUN / "config.json", place)
    rows = [json.loads(line) for line in rows_content(RUN).splitlines()]
    changed = [
        row | ({"value": change[row["metric"]]} if row["model"] == "unlearned" and row["metric"] in change else {})
        for row in rows
        if row["format"] in ("none", "int4-g64")
    ]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    return folder / "published"


def test_the_published_rows_are_those_of_all_published_runs(tmp_path: Path) -> None:
    assert measured(PUBLISHED, tmp_path / "out") == read_json_lines(PUBLISHED / "collapse/rows.jsonl")


def test_a_cell_has_the_numbers_of_its_run(tmp_path: Path) -> None:
    change = {"code_flips": 1769.472, "gating_effect": 0.25, "gain": 0.5}
    (row,) = measured(copied(tmp_path, change), tmp_path / "out")
    run = read_run(RUN).by_depth()[0]
    before, after = (
        run.value("forget_loss", *place) for place in (("target",), ("unlearned", run.methods[0], run.storages[0]))
    )
    assert before is not None
    assert after is not None
    assert (row["run"], row["format"], row["codes"], row["gain"]) == ("some-study/run", "int4-g64", 1769472, 0.5)
    assert "stored_in" not in row
    assert row["equal"] == pytest.approx(0.999, rel=FLOAT64)
    assert row["came_back"] == pytest.approx(0.25 / (after - before), rel=FLOAT64)


def test_a_cell_knows_whether_its_target_was_stored_in_four_bits(tmp_path: Path) -> None:
    folder = copied(tmp_path, {})
    path = folder / "some-study/run/config.json"
    settings = json.loads(path.read_text())
    settings["models"]["stored_in"] = "int4-g64"
    path.write_text(json.dumps(settings))
    (row,) = measured(folder, tmp_path / "out")
    assert row["stored_in"] == "int4-g64"


def test_models_that_hardly_forgot_are_left_out(tmp_path: Path) -> None:
    before = read_run(RUN).value("forget_loss", "target")
    assert before is not None
    folder = copied(tmp_path, {"forget_loss": before + 0.99 * LEAST_EFFECT})
    with pytest.raises(ValueError, match=r"^published must hold runs with rows of pairs, got none below "):
        measured(folder, tmp_path / "out")


def test_the_table_says_what_the_rows_leave_out() -> None:
    assert conjectures.LEAST_EFFECT == LEAST_EFFECT
