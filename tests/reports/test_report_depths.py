"""A run that kept weights at several depths: one section a depth, a table of all, and names that tell them apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from unforgotten.records.depths import kept_depths, state_name, stem, wanted, words
from unforgotten.records.rows import read_run
from unforgotten.reports import build_report
from unforgotten.reports.exports.measured_models import measured_models
from unforgotten.reports.run.arms import arms_table
from unforgotten.reports.run.tables import depth_table

PUBLISHED = Path(__file__).parents[2] / "reports/published"
DEPTHS = {"0.6": 1.0, "retrained": 2.0, "steps100": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published run of which each unlearned row is there three times, its forget loss multiplied."""
    out = tmp_path_factory.mktemp("deep")
    rows: list[dict[str, Any]] = []
    for text in (PUBLISHED / "tiny-seed0/rows.jsonl").read_text().splitlines():
        row = json.loads(text) | {"items": None}
        if row["model"] != "unlearned":
            rows.append(row)
            continue
        for depth, times in DEPTHS.items():
            value = row["value"] if row["metric"] != "forget_loss" else times * row["value"]
            rows.append(row | {"depth": depth, "value": value})
    (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copy(PUBLISHED / "tiny-seed0/config.json", out)
    return out


def test_each_depth_is_the_run_of_its_rows(folder: Path) -> None:
    whole, published = read_run(folder), read_run(PUBLISHED / "tiny-seed0")
    (first, deep, _) = whole.by_depth()
    assert whole.depths == tuple(DEPTHS)
    assert published.by_depth() == (published,)
    place = ("unlearned", "GA_KLR", "bf16", "int4-g64")
    loss = published.value("forget_loss", *place)
    assert loss is not None
    assert (first.value("forget_loss", *place), deep.value("forget_loss", *place)) == (loss, 2 * loss)
    assert first.value("M1", "target") == published.value("M1", "target")
    assert len(first.rows) == len(published.rows)


def test_the_page_has_a_section_of_each_depth_and_a_table_of_all(folder: Path, tmp_path: Path) -> None:
    page = build_report([folder], tmp_path / "report.html").read_text()
    for name in ("forget loss 0.6", "the retrained model&#39;s forget loss", "100 steps"):
        assert f"Run: tiny, seed 0, {name}</h2>" in page
    assert page.count('id="depths"') == 1
    table = depth_table(read_run(folder).by_depth())
    assert table is not None
    assert len(table.rows) == 3 * len(read_run(folder).arms)


def test_a_run_without_depths_has_no_such_table() -> None:
    assert depth_table([read_run(PUBLISHED / "tiny-seed0")]) is None


def test_exports_tell_the_depths_apart(folder: Path) -> None:
    names = [model.name for model in measured_models(folder)]
    assert len(set(names)) == len(names)
    assert "unlearned-GA_KLR-bf16-depth0.6-int4-g64" in names
    assert "unlearned-GA_KLR-bf16-retrained" in names


def test_runs_side_by_side_must_be_of_one_depth(folder: Path) -> None:
    run = read_run(folder)
    with pytest.raises(ValueError, match=r"runs must be without unlearning\.depths .*, got tiny, seed 0$"):
        arms_table(run, run)


def test_names_and_words_of_depths() -> None:
    depths = wanted({"depths": [0.2, "retrained"], "at_steps": [100]})
    assert depths == ("0.2", "retrained", "steps100")
    assert [stem(d) for d in depths] == ["depth0.2", "retrained", "steps100"]
    assert words(depths[1]) == "the retrained model's forget loss"
    assert kept_depths({}) == (None,)
    assert kept_depths({"at_steps": [1]}) == ("steps1", "end")
    assert state_name("NPO", "bf16", None) == "unlearned-NPO-bf16"
    assert state_name("NPO", "bf16-sr", "0.6") == "unlearned-NPO-bf16-sr-depth0.6"
