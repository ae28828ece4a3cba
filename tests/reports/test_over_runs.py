"""Several runs together: predictions are what the rows say, and a cell of the paper's table is a mean over runs."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from unforgotten.records.rows import Row, Run, read_run
from unforgotten.reports.run.build import build_report
from unforgotten.reports.run.over_runs import PREDICTIONS, paper_table, predictions_table, taken_back
from unforgotten.reports.run.over_runs_figure import predictions_figure
from unforgotten.reports.run.tables import summary_table
from unforgotten.reports.style import render_svg

PUBLISHED = Path(__file__).parents[2] / "reports/published"
FOLDERS = [PUBLISHED / f"tiny-seed{seed}" for seed in (0, 1)]


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    return [read_run(folder) for folder in FOLDERS]


def test_a_line_for_each_prediction_and_storage_arm(runs: list[Run]) -> None:
    table = predictions_table(runs)
    assert table is not None
    assert [(row[1], row[2], row[3]) for row in table.rows] == 3 * [
        ("fp32 master weights", "2", "60"),
        ("bf16 parameters", "2", "60"),
    ]
    flips = [row.value for run in runs for row in run.rows if row.metric == "code_flips" and row.storage == "bf16"]
    seen = [value for value in flips if value is not None]
    assert table.rows[1][5] == f"{min(seen):,.0f} to {max(seen):,.0f}"


def test_misses_and_intervals_are_counted(runs: list[Run]) -> None:
    exact = [moved(run, "code_flips", lambda row, run: run.value("expected_flips", *row.place)) for run in runs]
    table = predictions_table(exact)
    assert table is not None
    for row in table.rows[:2]:
        assert row[6:] == ["1.00 (1.00 to 1.00)", "0 of 60"]
    off = [
        moved(run, "code_flips", lambda row, run: 2 * (run.value("expected_flips", *row.place) or 0)) for run in runs
    ]
    doubled = predictions_table(off)
    assert doubled is not None
    assert [row[6:] for row in doubled.rows[:2]] == 2 * [["2.00 (2.00 to 2.00)", "60 of 60"]]


def test_what_gating_takes_back_is_a_share_of_what_unlearning_added(runs: list[Run]) -> None:
    run = moved(runs[0], "gating_effect", lambda row, run: 0.25 * added(run, row))
    assert {round(cell.seen, 12) for cell in taken_back(run)} == {0.25}
    little = moved(runs[0], "forget_loss", lambda row, run: run.value("forget_loss", "target"))
    assert not list(taken_back(little))


def test_a_cell_of_the_paper_s_table_is_the_mean_over_the_runs(runs: list[Run]) -> None:
    table = paper_table(runs)
    (line,) = (row for row in table.rows if row[:3] == ["NPO", "bf16 parameters", "int4-g64"])
    values = [run.value("M1", "unlearned", "NPO", "bf16", "int4-g64") or 0 for run in runs]
    assert line[3] == f"{statistics.fmean(values):.1f} ({min(values):.1f} to {max(values):.1f})"
    assert len(table.rows) == 2 * 6 + 6 * 2 * 6  # target and retrained, then methods by arms, each at six precisions
    alone = paper_table(runs[:1])
    assert "to" not in alone.rows[0][3]


def test_the_page_of_several_runs_shows_them_and_that_of_one_does_not(tmp_path: Path, runs: list[Run]) -> None:
    small = [Path(__file__).parent / "small_runs" / name for name in ("one-arm-seed0", "two-storages-seed0")]
    page = build_report(small, tmp_path / "report.html").read_text()
    assert 'id="predicted"' in page
    assert page.count("Predicted against seen") == 1
    one = build_report(small[:1], tmp_path / "one.html").read_text()
    assert 'id="predicted"' not in one
    svg = render_svg(lambda _: predictions_figure(runs), runs[0])
    assert svg is not None
    for prediction in PREDICTIONS[::2]:  # that of a gain of 1 has no line to be on
        assert prediction.name.encode() in svg
    assert summary_table(runs).rows


def test_runs_without_pairs_have_no_predictions(runs: list[Run]) -> None:
    bare = [replace(run, rows=tuple(row for row in run.rows if row.metric.startswith("M"))) for run in runs]
    assert predictions_table(bare) is None
    assert predictions_figure(bare) is None


def moved(run: Run, metric: str, value: Callable[[Row, Run], float | None]) -> Run:
    """Return the run with other values of a metric."""
    return replace(
        run, rows=tuple(replace(row, value=value(row, run)) if row.metric == metric else row for row in run.rows)
    )


def added(run: Run, row: Row) -> float:
    after = run.value("forget_loss", "unlearned", row.method, row.storage)
    return (after or 0) - (run.value("forget_loss", "target") or 0)
