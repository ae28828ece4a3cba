"""The numbers of the README are those of the committed rows."""

from __future__ import annotations

from pathlib import Path

from unforgotten.reports.markdown import survival_table
from unforgotten.reports.rows import read_run

ROOT = Path(__file__).parents[1]


SEEDS = range(5)


def test_the_results_in_the_readme_come_from_the_published_rows() -> None:
    runs = [read_run(ROOT / f"reports/published/tiny-seed{seed}") for seed in SEEDS]
    assert survival_table(runs) in (ROOT / "README.md").read_text()


def test_the_figure_of_the_readme_is_the_published_one() -> None:
    published = ROOT / "reports/published"
    figure = (published / "headline.svg").read_bytes()
    assert figure == (published / "tiny-seed0/headline.svg").read_bytes()
    assert "reports/published/headline.svg" in (ROOT / "README.md").read_text()
