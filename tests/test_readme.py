"""The numbers of the README are those of the committed rows."""

from __future__ import annotations

from pathlib import Path

from unforgotten.reports.markdown import TERMS, returns, survival_table
from unforgotten.reports.rows import read_run

ROOT = Path(__file__).parents[1]


RUNS = [read_run(ROOT / f"reports/published/tiny-seed{seed}") for seed in range(5)]


def test_the_results_in_the_readme_come_from_the_published_rows() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    assert " ".join(survival_table(RUNS).split()) in text
    coarse = [name for name in RUNS[0].formats if name.startswith(("int4", "fp4"))]
    assert f"comes back in {returns(RUNS, 'fp32', TERMS, RUNS[0].formats)} cases" in text
    assert f"in {returns(RUNS, 'bf16', ['NPO'], coarse)} cases at int4 and fp4" in text
    none = returns(RUNS, "bf16", ["GA"], coarse).replace("0 of", "none of")
    assert f"after gradient ascent in {none}" in text


def test_the_figure_of_the_readme_is_the_published_one() -> None:
    published = ROOT / "reports/published"
    figure = (published / "headline.svg").read_bytes()
    assert figure == (published / "tiny-seed0/headline.svg").read_bytes()
    assert "reports/published/headline.svg" in (ROOT / "README.md").read_text()
