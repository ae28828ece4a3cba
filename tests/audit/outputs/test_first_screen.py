"""The answer from the first screen alone: on a desk, on a phone, in the dark, on paper, and in a terminal of 60 columns.

In a browser without a network; axe-core looks for what a reader with other means would miss.
"""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from safetensors.numpy import save_file

from unforgotten.audit import DEFAULT_FORMATS, AuditResult, audit_pair, print_summary
from unforgotten.audit.outputs.html import render
from unforgotten.audit.outputs.merged import MOST_REASONS, merged_findings, top_reasons
from unforgotten.audit.verdict.legs import BehaviourFormat, BehaviourLeg, Mean, RecoveryRow

CHROMIUM = shutil.which("chromium")
HANG_SECONDS = 600.0  # a net under a browser that does not answer
DESK, PHONE = (1280, 800), (390, 844)
KINDS = ("weights", "open", "undone", "survives", "destroyed")
LONG = "model.layers.0." + "a_rather_long_name_that_somebody_gave_to_an_expert_of_a_mixture." * 3 + "weight"
SHARES = {"open": 0.2, "undone": 0.8, "survives": 0.0, "destroyed": 0.0}
A4_POINTS = (595, 842)


def matrices(moved: bool) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    w = {name: rng.normal(size=(16, 256)).astype(np.float32) for name in ("model.layers.1.up_proj.weight", LONG)}
    for x in w.values():
        x[:, 0] = 7
    return {n: np.where(np.abs(x) < 0.25, x + np.float32(0.06), x) for n, x in w.items()} if moved else w


def mean(value: float) -> Mean:
    return Mean(value=value, stderr=0.01 * abs(value), n=20)


def recovery(metric: str, rho: float, half: float) -> RecoveryRow:
    return RecoveryRow(
        metric=metric,
        n=20,
        target=98.0,
        unlearned=8.0,
        quantized_target=97.0,
        quantized_unlearned=8.0 + 90 * rho,
        removed=True,
        rho=rho,
        low=rho - half,
        high=rho + half,
        change=[0.0, 0.0],
        p_undone=1e-6 if rho > 0.5 else 1.0,
        p_survives=1e-6 if rho < 0.1 else 1.0,
        effective=9.3,
    )


def leg(kind: str) -> BehaviourLeg:
    kept = {"M4": 17.0, "retain_loss": 53.0} if kind == "destroyed" else {"M4": 95.0, "retain_loss": 0.2}
    sides = {"target": {"M4": 97.0, "retain_loss": 0.1, "auc": 0.99}, "unlearned": {**kept, "auc": 0.5}}
    metrics = {side: {name: mean(x) for name, x in found.items()} for side, found in sides.items()}
    rho, half = SHARES[kind], 0.3 if kind == "open" else 0.05
    formats = [
        BehaviourFormat(
            format=name,
            metrics={"Q(target)": metrics["target"], "Q(unlearned)": metrics["unlearned"]},
            recoveries=[recovery("M1", rho, half), recovery("M2", rho, half)],
            effects=[],
        )
        for name in DEFAULT_FORMATS
    ]
    return BehaviourLeg(benchmark="b", metrics=metrics, formats=formats, leaks=[], notes=["ROUGE splits at spaces."])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, AuditResult]:
    root = tmp_path_factory.mktemp("screen")
    for name, moved in (("target", False), ("unlearned", True)):
        (root / name).mkdir()
        save_file(matrices(moved), root / name / "model.safetensors")
    found = {}
    for kind in KINDS:
        measure = None if kind == "weights" else (lambda kind=kind: leg(kind))
        found[kind] = audit_pair(root / "target", root / "unlearned", out=root / kind, behaviour=measure)
    return found


@pytest.fixture(scope="module")
def pages(results: dict[str, AuditResult], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The written pages, by kind: with rows of tensors, as `audit_pair` wrote them."""
    root = Path(tmp_path_factory.getbasetemp())
    return {kind: next(root.glob(f"screen*/{kind}/audit.html")).as_uri() for kind in results}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs chromium on PATH")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
            timeout=1000 * HANG_SECONDS,
        )
        yield found
        found.close()


def opened(browser: Any, place: str, size: tuple[int, int], **more: Any) -> Any:
    context = browser.new_context(offline=True, viewport={"width": size[0], "height": size[1]}, **more)
    page = context.new_page()
    page.set_default_timeout(1000 * HANG_SECONDS)
    page.goto(place)
    return page


def bottom(page: Any, selector: str) -> float:
    return float(page.locator(selector).last.evaluate("e => e.getBoundingClientRect().bottom"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_the_first_screen_holds_the_answer(
    kind: str, size: tuple[int, int], browser: Any, pages: dict[str, str]
) -> None:
    page = opened(browser, pages[kind], size)
    assert page.locator("h2#verdict").text_content().startswith("Verdict: ")
    assert page.locator(".answer tbody tr").count() == len(DEFAULT_FORMATS)
    assert bottom(page, ".answer tbody tr") < size[1]
    assert bottom(page, ".next") <= size[1]
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert page.locator(".answer").evaluate("e => e.scrollWidth - e.parentElement.clientWidth") <= 0
    page.context.close()


@pytest.mark.parametrize("kind", ["weights", "open"])
def test_nothing_is_cut_on_a_phone(kind: str, browser: Any, pages: dict[str, str]) -> None:
    """What does not fit wraps, or stands in a region that scrolls; a caption is as wide as the screen at most."""
    page = opened(browser, pages[kind], PHONE)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    cut = page.evaluate(
        """() => [...document.querySelectorAll("p, li, h1, h2, dd, figcaption, summary, footer, caption span, code")]
             .filter(e => e.getClientRects().length && !e.closest("table:not(.stack)"))
             .filter(e => e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.textContent.slice(0, 60))"""
    )
    assert cut == []
    wide = page.evaluate(
        "() => [...document.querySelectorAll('caption span')].map(e => e.getBoundingClientRect().width).filter(w => w > 390)"
    )
    assert wide == []
    out = page.evaluate(
        """() => [...document.querySelectorAll("table, svg")].filter(e => e.getClientRects().length)
             .filter(e => e.getBoundingClientRect().width > window.innerWidth)
             .filter(e => getComputedStyle(e.closest(".scroll") ?? document.body).overflowX !== "auto").length"""
    )
    assert out == 0
    small = page.evaluate(
        """() => [...document.querySelectorAll("svg text")].filter(e => e.getBoundingClientRect().height < 11).length"""
    )
    assert small == 0
    page.context.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("scheme", "size"),
    [
        pytest.param("light", DESK, id="light, desk"),
        pytest.param("dark", PHONE, id="dark, phone"),
        pytest.param("dark", DESK, id="dark, desk", marks=pytest.mark.nightly),
        pytest.param("light", PHONE, id="light, phone", marks=pytest.mark.nightly),
    ],
)
def test_axe_finds_nothing(kind: str, scheme: str, size: tuple[int, int], browser: Any, pages: dict[str, str]) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="carries axe-core")
    page = opened(browser, pages[kind], size, color_scheme=scheme, bypass_csp=True)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    found = axe.Axe().run(page)
    assert [(v["id"], v["nodes"][0]["html"][:200]) for v in found.response["violations"]] == []
    page.context.close()


def test_it_prints_to_a4(browser: Any, pages: dict[str, str], tmp_path: Path) -> None:
    page = opened(browser, pages["open"], DESK)
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 688, "height": 1000})  # A4 less its margins, at 96 dots an inch
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    over = page.evaluate(
        "() => [...document.querySelectorAll('table, svg')].filter(e => e.getClientRects().length)"
        ".filter(e => e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert over == []
    page.pdf(path=tmp_path / "page.pdf", prefer_css_page_size=True)
    text = (tmp_path / "page.pdf").read_bytes()
    box = re.search(rb"/MediaBox ?\[ ?0 0 ([0-9.]+) ([0-9.]+)", text)
    assert box is not None
    assert tuple(round(float(x)) for x in box.groups()) == A4_POINTS
    page.context.close()


def printed(result: AuditResult, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True, force_terminal=True)
    print_summary(result, Path("audits/latest"), console, last="exit 0: no --fail-on was given")
    return console.export_text()


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_a_terminal_cuts_nothing(kind: str, width: int, results: dict[str, AuditResult]) -> None:
    text = printed(results[kind], width)
    whole = "".join(text.split())
    assert "…" not in text
    for sentence in top_reasons(results[kind]):
        assert "".join(sentence.split()) in whole
    for name in DEFAULT_FORMATS:
        assert name in text
    lines = text.splitlines()
    assert lines[0].startswith("Verdict: ")
    assert all(len(line) <= width for line in lines if not line.startswith("Report: "))
    assert "nan" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_reasons_are_at_most_five_and_each_is_one_sentence(kind: str, results: dict[str, AuditResult]) -> None:
    reasons = top_reasons(results[kind])
    assert 1 <= len(reasons) <= MOST_REASONS
    assert len(set(reasons)) == len(reasons)
    for reason in reasons:
        assert reason.endswith(".")
        assert not re.search(r"[.!?] [A-Z]", reason), reason


def test_five_findings_that_say_the_same_are_one(results: dict[str, AuditResult]) -> None:
    rows = results["weights"]["findings"]
    merged = merged_findings(rows)
    ids = [one.id for one in merged if one.rows[0]["format"] is not None]
    assert len(ids) == len(set(ids))
    assert sum(len(one.rows) for one in merged) == len(rows)
    assert any(len(one.rows) > 1 for one in merged)
    for one in merged:
        assert all((row["format"] or "") in one.sentence for row in one.rows)


def test_reasons_of_a_leg_are_joined_over_formats(results: dict[str, AuditResult]) -> None:
    reasons = top_reasons(results["undone"])
    assert "Behaviour: of what was removed from M1, 80 % comes back in " + ", ".join(DEFAULT_FORMATS) + "." in reasons
    assert len([reason for reason in reasons if "M1" in reason]) == 1


def test_a_note_on_files_is_shown_where_the_answer_is(results: dict[str, AuditResult]) -> None:
    noted: Any = {**results["weights"], "notes": ["model.safetensors was read, the index was not"]}
    assert "Note: model.safetensors was read, the index was not" in printed(noted, 200)
    assert "<p>Note: model.safetensors was read, the index was not</p>" in render(noted, [])
    assert "Note: ROUGE splits at spaces." in printed(results["open"], 200)


def test_the_items_behind_an_open_verdict_are_counted(results: dict[str, AuditResult]) -> None:
    text = " ".join(printed(results["open"], 200).split())
    assert "9.3 effective items of 20, fewer than the 12 that a verdict should rest on" in text
    assert re.search(r"about [0-9,]+ would decide", text) or "more than 100,000 would decide" in text
    assert all(row["effective"] == 9.3 for row in results["open"]["power"])
    assert "Items: M1 in int4-g64 rests on 9.3 effective items" in printed(results["survives"], 200)
    assert "Items: M1 in int4-g64 rests on 9.3 effective items" in render(results["survives"], [])


def test_a_control_of_a_standard_is_named_with_what_is_covered(results: dict[str, AuditResult]) -> None:
    for kind, covers in (("weights", "weights"), ("open", "behaviour")):
        control = results[kind]["control"]
        assert (control["standard"], control["control"], control["covers"]) == ("OWASP AISVS 1.0", "C3.2.2", covers)
        assert control["sentence"] in render(results[kind], []).replace("&#39;", "'")
