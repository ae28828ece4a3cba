"""The page of a run with three arms: published rows, and the fp32 ones once more under the third arm's name."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from unforgotten.records.rows import Run
from unforgotten.reports import build_report, read_run
from unforgotten.reports.run.conjectures import Conjecture, conjectures
from unforgotten.reports.run.figures import FIGURES
from unforgotten.reports.run.tables import origin_table, settings_table
from unforgotten.reports.style import arm_styles, render_svg
from unforgotten.verification.recording.printed import text_differences

PUBLISHED = Path(__file__).parents[2] / "reports/published/tiny-seed0"
SR = "bf16-sr"
FIGURE = re.compile(r"data:image/svg\+xml;base64,[^\"]*")
COMPUTED = {
    "products": "float32 rounded to bfloat16",
    "rounding": "stochastic",
    "processor": "Some CPU, AVX2",
    "evaluation_dtype": "bfloat16",
    "dtypes": {"parameters": "bfloat16", "master": "none", "moments": "bfloat16", "checkpoint": "bfloat16"},
}


def save(folder: Path, **changed: Any) -> Path:
    """The rows of three arms; `changed` are values of the third by metric."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(text) for text in (PUBLISHED / "rows.jsonl").read_text().splitlines()]
    third = [{**row, "storage": SR} | COMPUTED for row in rows if row["storage"] == "fp32"]
    for row in third:
        row["value"] = changed.get(row["metric"], row["value"])
    text = "".join(json.dumps(row) + "\n" for row in [*rows, *third])
    (folder / "rows.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(save(tmp_path_factory.mktemp("arms")))


def c2(run: Run) -> Conjecture:
    return conjectures(run)[1]


def test_every_figure_has_all_arms(run: Run) -> None:
    assert run.storages == ("fp32", "bf16", SR)
    styles = arm_styles(run.storages).values()
    assert len({s.colour for s in styles}) == len({s.marker for s in styles}) == 3
    for name, draw in FIGURES.items():
        svg = render_svg(draw, run)
        assert svg is not None
        assert b"stochastic bf16" in svg, name


def test_the_page_names_the_arm_and_says_what_it_is(tmp_path: Path) -> None:
    page = build_report([save(tmp_path / "run")], tmp_path / "report.html")
    text = unescape(page.read_text())
    assert "With stochastically rounded bf16 parameters, quantization brought" in text
    assert "no step is lost on average" in text
    alone = build_report([PUBLISHED], tmp_path / "alone.html").read_text()
    assert "tochastic" not in alone


def test_a_run_without_the_arm_has_the_page_that_is_published(tmp_path: Path) -> None:
    """But for the figures, whose coordinates are floats of the machine that drew them, and a last printed digit."""
    again = build_report([PUBLISHED], tmp_path / "report.html")
    made, kept = (FIGURE.sub("", p.read_text()) for p in (again, PUBLISHED / "report.html"))
    assert not text_differences(made, kept)


def test_c2_asks_the_third_arm_what_its_mechanism_says_of_it(run: Run, tmp_path: Path) -> None:
    before = c2(read_run(PUBLISHED))
    asked = c2(run).predictions[len(before.predictions) :]
    assert [p.verdict for p in asked] == ["confirmed here", "open here"]
    swallowed = c2(read_run(save(tmp_path, gain=0.5)))
    assert swallowed.predictions[len(before.predictions)].verdict == "refuted here"
    assert swallowed.verdict == "refuted here"


def test_settings_show_what_any_row_says_of_how_it_computed(run: Run) -> None:
    table = settings_table(run)
    assert table.columns[6:] == ("Parameters", "Master copy", "Checkpoint", "Moments", "Rounding", "Matrix products")
    shown = {row[1]: tuple(row[6:]) for row in table.rows}
    assert shown["fp32 master weights"] == ("float32", "float32", "float32", "–", "–", "–")
    assert shown["stochastically rounded bf16 parameters"] == (
        "bfloat16",
        "none",
        "bfloat16",
        "bfloat16",
        "stochastic",
        "float32 rounded to bfloat16",
    )
    old = settings_table(read_run(PUBLISHED))
    assert old.columns[6:] == ("Parameters", "Master copy", "Checkpoint")


def test_alpha_is_what_the_rows_say_and_no_guess_for_a_method_of_somebody_s_own(run: Run) -> None:
    """The configuration's common alpha is that of the methods that it has settings of."""
    others = {"unlearning": {"alpha": 7.0, "methods": {"mine.py:own": {}, "NPO": {"alpha": 2.0}}}}
    first = next(row for row in run.rows if row.method == "NPO")
    rows = [replace(first, method=m, alpha=a) for m, a in (("own", None), ("own2", 3.0), ("NPO", None))]
    shown = settings_table(Run(tuple(rows), run.sha256, others)).rows
    assert [row[3] for row in shown] == ["–", "3", "2"]


def test_processor_and_dtype_stand_with_the_origin_where_the_rows_name_them(run: Run) -> None:
    assert ("Processor", "Some CPU, AVX2") in origin_table(run).rows
    assert ("Dtype of the evaluation", "bfloat16") in origin_table(run).rows
    assert all(
        what not in ("Processor", "Dtype of the evaluation") for what, _ in origin_table(read_run(PUBLISHED)).rows
    )
