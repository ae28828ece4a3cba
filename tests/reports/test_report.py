"""The report from hand-made rows: same bytes, true numbers, harmless names, and a page that opens offline."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from unforgotten.reports import build_report, read_run
from unforgotten.reports.labels import number
from unforgotten.reports.run.conjectures import conjectures
from unforgotten.reports.run.figures import FIGURES
from unforgotten.reports.run.gates import forgetting, forgetting_sentences, gate_checks, passed
from unforgotten.reports.run.sentences import answer, recovery
from unforgotten.reports.run.tables import recovery_table
from unforgotten.reports.style import render_svg

FORMATS = ("int4-g64", "nf4-b64", "int8-row")
METHODS = ("GA_KLR", "NPO_GDR")
CHROMIUM = shutil.which("chromium")
HANG_SECONDS = 600.0  # a net under a browser that does not answer
Line = dict[str, Any]


def lines(
    methods: Sequence[str] = METHODS,
    storages: Sequence[str] = ("fp32", "bf16"),
    formats: Sequence[str] = FORMATS,
    *,
    seed: int = 0,
    swallowed: bool = True,
) -> Iterator[Line]:
    """Rows as `run` writes them. `swallowed`: bf16 parameters lose the update at int4 and fp4, as C2 predicts."""
    for model, m1, m2 in (("retrained", 20.0, 25.0), ("target", 99.0, 97.0)):
        for f in ("none", *formats):
            yield from behaviour(seed, {"model": model, "format": f}, m1 - len(f) / 10, m2)
    for i, method in enumerate(methods):
        for storage in storages:
            subject = {"model": "unlearned", "method": method, "storage": storage}
            for f in ("none", *formats):
                lost = swallowed and storage == "bf16" and f.startswith(("int4", "fp4"))
                yield from behaviour(seed, subject | {"format": f}, 15.0 + i + 30 * lost, 40.0, 1.4 - 0.5 * lost)
                if f != "none":
                    yield from pair(seed, subject | {"format": f}, i, lost)


def behaviour(seed: int, subject: Line, m1: float, m2: float, loss: float = 0.1) -> Iterator[Line]:
    values = {"M1": m1, "M2": m2, "M3": -99.5, "M4": 90.25, "auc": 0.01, "forget_loss": loss, "retain_loss": 0.2}
    for metric, value in values.items():
        yield line(seed, subject, metric, value, stderr=0.05 * abs(value))


def pair(seed: int, subject: Line, i: int, lost: bool) -> Iterator[Line]:
    uniform = subject["storage"] == "fp32"
    flips = 50_000 * (i + 1) + len(subject["format"])
    values = {
        "gain": 0.31 + i / 100 if lost else 1.002 + i / 1000,
        "cosine": 0.21,
        "code_flips": flips,
        "expected_flips": flips * (2 if lost else 1.01),
        "value_changes": 2 * flips,
        "unchanged_fraction": 0.0 if uniform else 0.8,
        "position_distance": 0.001 if uniform else 0.2,
    }
    for metric, value in values.items():
        yield line(seed, subject, metric, value)
    for hybrid in ("target+D", "Q(target)+delta"):
        yield line(seed, subject, f"M1@{hybrid}", 16.5, stderr=1.5)
        yield line(seed, subject, f"forget_loss@{hybrid}", 1.375, stderr=0.05)
    gating = 0.5 if lost else 0.004
    for metric, value in {"lost_effect": gating + 0.01, "gating_effect": gating, "base_shift_effect": 0.01}.items():
        yield line(seed, subject, metric, value, stderr=0.01)
    rho = 0.4125 if lost else 0.0125
    yield line(seed, subject, "rho_M1", rho, stderr=0.02, interval=[rho - 0.05, rho + 0.05])
    yield line(seed, subject, "rho_M2", None, interval=[None, None])


def line(seed: int, subject: Line, metric: str, value: float | None, **more: object) -> Line:
    trained = subject["model"] != "unlearned"
    common: Line = {
        "method": None,
        "storage": None,
        "lr": None if trained else 1.5e-5,
        "stderr": None,
        "n": 24,
        "interval": None,
        "items": None,
        "stage": "s",
        "profile": "hand",
        "seed": seed,
        "config": "c0ffee",
        "revision": "0.1+src.1",
        "corpus": "fiction",
        "device": "cpu",
        "steps": None if trained else 60,
        "stopped": None if trained else "forget_loss",
        "dtypes": {"parameters": "float32", "master": "none", "checkpoint": "bfloat16"},
    }
    return common | subject | {"metric": metric, "value": value} | more


def save(folder: Path, rows: Sequence[Line], config: Line | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    methods = {"GA_KLR": {"alpha": None}, "NPO_GDR": {"alpha": 2.5}}
    return save(tmp_path_factory.mktemp("run"), list(lines()), {"unlearning": {"alpha": 1.25, "methods": methods}})


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_report([folder], tmp_path_factory.mktemp("report") / "report.html")


def files(report: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in report.parent.iterdir()}


def test_same_rows_give_the_same_bytes(folder: Path, page: Path, tmp_path: Path) -> None:
    elsewhere = save(tmp_path / "copy", list(lines()), json.loads((folder / "config.json").read_text()))
    assert files(build_report([elsewhere], tmp_path / "out" / "report.html")) == files(page)


def test_checksums_stand_beside_the_page_and_in_it(folder: Path, page: Path) -> None:
    sums = json.loads(page.with_suffix(".sha256.json").read_text())
    rows = hashlib.sha256((folder / "rows.jsonl").read_bytes()).hexdigest()
    assert sums["rows"][0]["sha256"] == rows
    assert rows in page.read_text()
    for name in ("report.html", "headline.svg", "headline.png"):
        assert sums["files"][name] == hashlib.sha256((page.parent / name).read_bytes()).hexdigest()


def test_every_figure_is_drawn_and_on_the_page(folder: Path, page: Path) -> None:
    run = read_run(folder)
    assert all(render_svg(draw, run) for draw in FIGURES.values())
    assert page.read_text().count('<img src="data:image/svg+xml;base64,') == len(FIGURES)
    assert "no rows for this figure" not in page.read_text()


def test_svg_holds_text_and_no_date(page: Path) -> None:
    svg = (page.parent / "headline.svg").read_text()
    assert "bf16 parameters: in 2 of 6 cases" in svg
    assert "<dc:date>" not in svg


def test_numbers_on_the_page_are_those_of_the_rows(folder: Path, page: Path) -> None:
    text = unescape(page.read_text())
    for row in read_run(folder).rows:
        if row.metric in ("M1", "M4", "forget_loss", "gain", "rho_M1", "gating_effect", "code_flips"):
            shown = number(row.metric, row.value)
            ends = ", ".join(number(row.metric, end) for end in row.bounds or ())
            assert (f"{shown} [{ends}]" if ends else f">{shown}<") in text
    assert "15.0 [13.5, 16.5]" in text
    assert ">undefined<" in text


def test_alpha_is_the_methods_own_or_the_common_one(page: Path) -> None:
    text = page.read_text()
    assert re.search(r"GA_KLR</th><td class=\"text\">fp32 master weights</td><td>1\.5e−05</td><td>1\.25</td>", text)
    assert re.search(r"NPO_GDR</th><td class=\"text\">fp32 master weights</td><td>1\.5e−05</td><td>2\.5</td>", text)


def test_the_page_loads_nothing(page: Path) -> None:
    text = page.read_text()
    loads = re.findall(r"(?:src|href|action|data)=\"([^\"]*)\"|url\(([^)]*)\)|@import ([^;]*)", text)
    assert loads
    assert all(first.startswith(("data:", "#")) for first, *_ in loads)
    assert "<script" not in text
    assert "http://" not in text
    assert "https://" not in text


def test_headings_do_not_skip_a_level_and_ids_are_unique(page: Path) -> None:
    levels = [int(level) for level in re.findall(r"<h(\d)[ >]", page.read_text())]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = re.findall(r' id="([^"]*)"', page.read_text())
    assert len(ids) == len(set(ids))


HOSTILE = ("<script>alert(1)</script>", 'a" onload="x', "$\\frac{1}{0}$", "&amp;\x07", "_" * 90)


def test_hostile_names_are_text(tmp_path: Path) -> None:
    rows = list(lines(HOSTILE[:3], ("fp32", HOSTILE[3]), ("int4-g64", HOSTILE[4], HOSTILE[0])))
    text = build_report([save(tmp_path, rows)], tmp_path / "r.html").read_text()
    assert "<script" not in text
    assert 'onload="' not in text
    assert HOSTILE[0] in unescape(text)


def only(rows: Iterator[Line], *metrics: str) -> list[Line]:
    return [row for row in rows if row["metric"] in metrics]


@pytest.mark.parametrize(
    ("rows", "absent", "headline"),
    [
        (list(lines(("GA",), ("fp32",), ("int4-g64", "nf4-b64"))), 0, True),
        (only(lines(), "M1"), 5, True),
        (only(lines(), "gain", "cosine"), 5, True),
        (only(lines(), "retain_loss"), 7, False),
        ([row for row in lines() if row["model"] == "target"], 6, False),
        ([row for row in lines() if row["format"] == "none"], 5, True),
        ([row for row in lines() if row["model"] != "target"], 0, True),
    ],
    ids=["cut run", "M1 only", "gain only", "one loss only", "target only", "not quantized", "no target"],
)
def test_a_run_with_missing_rows_has_a_report_that_says_so(
    rows: list[Line], absent: int, headline: bool, tmp_path: Path
) -> None:
    text = build_report([save(tmp_path, rows)], tmp_path / "report.html").read_text()
    assert text.count("no rows for this figure") == absent
    assert "None" not in text
    assert (tmp_path / "headline.svg").exists() == headline


def test_a_headline_that_the_rows_do_not_carry_is_removed(tmp_path: Path) -> None:
    build_report([save(tmp_path, list(lines()))], tmp_path / "report.html")
    build_report([save(tmp_path, only(lines(), "retain_loss"))], tmp_path / "report.html")
    assert not list(tmp_path.glob("headline.*"))


def test_several_runs_have_a_summary_and_a_section_each(folder: Path, tmp_path: Path) -> None:
    second = save(tmp_path / "second", list(lines(seed=1, swallowed=False)))
    text = build_report([folder, second], tmp_path / "both.html").read_text()
    assert "Report of 2 runs" in text
    assert "hand, seed 1</h2>" in text
    assert text.count('class="good">confirmed<') == 6  # C1 twice a run, C2 of the first
    assert text.count('class="bad">refuted<') == 2
    assert text.count('<img src="data:image/svg+xml;base64,') == 2 * len(FIGURES) + 1  # and predicted against seen
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))


def test_bad_calls_are_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one run, got none"):
        build_report([], tmp_path / "report.html")
    with pytest.raises(ValueError, match="got a directory"):
        build_report([folder], tmp_path)
    with pytest.raises(ValueError, match="must be the directory of a run"):
        build_report([folder, tmp_path / "gone"], tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_the_table_names_the_interval_of_its_rows(folder: Path) -> None:
    """Rows with a standard error have a bootstrap's; those without, of later runs, Fieller's."""
    run = read_run(folder)
    later = dataclasses.replace(run, rows=tuple(dataclasses.replace(row, stderr=None) for row in run.rows))
    assert recovery_table(run).caption == "Recovered fraction and 95 % interval (paired bootstrap over items)."
    assert "(t-test over items, Fieller's)" in recovery_table(later).caption


def test_recovery_is_counted_by_interval_with_undefined_apart(folder: Path) -> None:
    run = read_run(folder)
    back = recovery(run, "bf16")
    assert (len(back.back), len(back.level), len(back.away), len(back.undefined)) == (2, 4, 0, 0)
    assert len(recovery(run, "fp32").back) == 0
    assert len(recovery(run, "fp32", "M2").undefined) == 6
    assert any("in 2 of 6 combinations" in sentence for sentence in answer(run))


@pytest.mark.parametrize(("swallowed", "verdict"), [(True, "confirmed here"), (False, "refuted here")])
def test_c2_follows_the_rows(swallowed: bool, verdict: str, tmp_path: Path) -> None:
    c1, c2 = conjectures(read_run(save(tmp_path, list(lines(swallowed=swallowed)))))
    assert c1.verdict == "confirmed here"
    assert c2.verdict == verdict


def test_one_clear_counterexample_refutes_c1_and_a_vague_one_leaves_it_open(tmp_path: Path) -> None:
    rows = list(lines())
    row = next(r for r in rows if r["metric"] == "gating_effect" and r["storage"] == "fp32")
    row["value"] = 0.5
    assert conjectures(read_run(save(tmp_path, rows)))[0].verdict == "refuted here"
    row["stderr"] = 1.0
    assert conjectures(read_run(save(tmp_path, rows)))[0].verdict == "open here"


def test_even_places_with_a_gain_far_from_one_are_out_of_scope_of_c1(tmp_path: Path) -> None:
    """As FP4 does: the update covers its wide cells evenly and never reaches a threshold."""
    rows = list(lines())
    for row in rows:
        if row["metric"] == "position_distance":
            row["value"] = 0.001
    c1 = conjectures(read_run(save(tmp_path, rows)))[0]
    assert (c1.verdict, c1.scope) == ("confirmed here", "10 of 12 cases in scope")


def test_without_bf16_rows_c2_is_open(tmp_path: Path) -> None:
    assert conjectures(read_run(save(tmp_path, list(lines(storages=("fp32",))))))[1].verdict == "open here"


def test_gates_hold_fail_and_stay_unmeasured(tmp_path: Path) -> None:
    rows = list(lines())
    assert passed(gate_checks(read_run(save(tmp_path, rows)))) is True
    weak = [r | {"value": 79.0} if (r["model"], r["metric"]) == ("target", "M1") else r for r in rows]
    run = read_run(save(tmp_path, weak))
    assert passed(gate_checks(run)) is False
    assert answer(run)[0].startswith("Read the rest with care")
    assert passed(gate_checks(read_run(save(tmp_path, only(lines(), "M4"))))) is None


def test_a_method_that_does_not_forget_or_keep_is_named(tmp_path: Path) -> None:
    rows = list(lines())
    for row in rows:
        if (row["method"], row["storage"], row["format"]) == ("GA_KLR", "bf16", "none"):
            row["value"] = {"M1": 80.0, "M4": 50.0}.get(row["metric"], row["value"])
    run = read_run(save(tmp_path, rows))
    entry = next(e for e in forgetting(run) if (e.method, e.storage) == ("GA_KLR", "bf16"))
    assert (entry.forgets, entry.keeps, entry.forgets_facts) == (False, False, True)
    words = " ".join(forgetting_sentences(run))
    assert "step limit" not in words
    assert "Does not forget the words by this rule: GA_KLR with bf16 parameters." in words
    assert "Loses too much of what it should keep: GA_KLR with bf16 parameters." in words


def test_a_model_that_reached_the_step_limit_is_named(tmp_path: Path) -> None:
    limit = {"stopped": "max_steps"}
    rows = [row | limit if row["storage"] == "bf16" else row for row in lines(("GA",))]
    words = " ".join(forgetting_sentences(read_run(save(tmp_path, rows))))
    assert "before the stopping rule: GA with bf16 parameters." in words


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on PATH")
def test_the_page_opens_offline_in_a_browser(page: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    noise: list[str] = []
    requests: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
            timeout=1000 * HANG_SECONDS,
        )
        tab = browser.new_context(offline=True, viewport={"width": 1200, "height": 900}).new_page()
        tab.set_default_timeout(1000 * HANG_SECONDS)
        tab.on("console", lambda message: noise.append(message.text))
        tab.on("pageerror", lambda error: noise.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(page.as_uri())
        assert tab.locator("h1").is_visible()
        boxes = tab.locator("figure img").evaluate_all(
            "images => images.map(i => [i.complete, i.naturalWidth, i.clientWidth, i.clientHeight])"
        )
        overflow = tab.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        browser.close()
    assert not noise
    assert overflow <= 0
    assert len(boxes) == len(FIGURES)
    assert all(done and min(sizes) > 100 for done, *sizes in boxes)
    assert all(url.startswith(("file:", "data:")) for url in requests)
