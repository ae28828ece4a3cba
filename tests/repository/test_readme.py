"""The numbers of the README are those of the committed rows."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from unforgotten.records.rows import read_run
from unforgotten.reports.markdown import TERMS, returns, survival_table
from unforgotten.reports.studies.audit_cost import read_bench
from unforgotten.reports.studies.audit_truth import read_truth

ROOT = Path(__file__).parents[2]


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


def test_the_verdicts_counted_in_the_readme_are_those_of_the_rows() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    rows = read_truth(ROOT / "reports/published/audit-truth")
    whole = [r for r in rows if r["set"] in ("whole", "constructed")]
    sure = [r for r in whole if r["verdict"] != "undecided"]
    assert all(r["verdict"] == r["truth"] for r in sure)
    made = sum(r["set"] == "constructed" for r in whole)
    assert f"On {len(whole) - made} pairs from `run` and {made} made so" in text
    assert f"gave {len(sure)} confident verdicts and all were right" in text
    assert f"said undecided for {len(whole) - len(sure)}." in text
    halves = [r for r in rows if r["set"] == "halves"]
    wrong = [r for r in halves if r["verdict"] not in ("undecided", r["truth"])]
    assert {r["verdict"] for r in wrong} == {"survives"}
    undecided = sum(r["verdict"] == "undecided" for r in halves)
    assert f"undecided for {undecided} of {len(halves)}, and its {len(wrong)} errors" in text


def test_the_cost_of_an_audit_in_the_readme_is_that_of_the_rows() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    first, _, large = read_bench(ROOT / "reports/published/audit-bench")
    speed = median(large["weights"] / s / 1e6 for s in large["seconds"]["audit one/2"])
    peak = max(large["peak_mib"].values()) / 1024
    seconds = first["seconds"]
    scale = first["weights"] / first["yardstick_weights"]
    times = median(
        scale * bnb / one for bnb, one in zip(seconds["bitsandbytes/2"], seconds["audit one/2"], strict=True)
    )
    assert f"A 2 x 8 GiB pair takes {peak:.1f} GiB of memory" in text
    assert f"some {speed:.0f} million weights a second on two cores, {times:.0f} times" in text
    shares = [
        median(r / a for r, a in zip(b["seconds"]["read/1"], b["seconds"]["audit one/2"], strict=True))
        for b in (first, large)
    ]
    assert all(0.22 < share < 0.28 for share in shares), "a quarter"
    rates = [median(sum(b["file_bytes"]) / s / 1e9 for s in b["seconds"]["read/1"]) for b in (first, large)]
    assert all(29.5 < rate < 30.5 for rate in rates), "30 GB a second"
