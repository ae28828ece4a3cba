"""The page of an audit in a browser without a network: no error, by keyboard alone, sorted, filtered."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from unforgotten.audit import audit_pair
from unforgotten.audit.outputs.layer_map import colour_of, kind_of, layer_maps
from unforgotten.audit.outputs.result_rows import tensor_rows
from unforgotten.audit.sources.open import open_pair
from unforgotten.audit.weights.leg import weights_leg

CHROMIUM = shutil.which("chromium")
LAYERS, KINDS = 3, ("self_attn.q_proj", "mlp.up_proj")
HOSTILE = 'model.layers.0.<img src=x onerror="alert(1)">.weight'
FORMATS = ("int4-row", "int8-row")
BLACK_INK = (0x1B, 0x1F, 0x24)
HANG_SECONDS = 600.0  # a net under a browser that does not answer


def matrices(seed: int) -> dict[str, NDArray[Any]]:
    names = [f"model.layers.{i}.{kind}.weight" for i in range(LAYERS) for kind in KINDS]
    start = np.random.default_rng(0)
    move = np.random.default_rng(seed)
    return {
        name: (start.normal(size=(16, 64)) + seed * move.normal(0, 0.1, (16, 64))).astype(np.float32)
        for name in [*names, HOSTILE]
    }


def pair(root: Path) -> tuple[Path, Path]:
    for seed, name in enumerate("tu"):
        (root / name).mkdir()
        save_file(matrices(seed), root / name / "model.safetensors")
    return root / "t", root / "u"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    audit_pair(*pair(root), list(FORMATS), root / "out")
    return root


@pytest.fixture(scope="module")
def tab(folder: Path) -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs chromium on PATH")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
            timeout=1000 * HANG_SECONDS,
        )
        page = browser.new_context(offline=True, viewport={"width": 1200, "height": 900}).new_page()
        page.set_default_timeout(1000 * HANG_SECONDS)
        page.noise, page.requests = [], []
        page.on("console", lambda message: page.noise.append(message.text))
        page.on("pageerror", lambda error: page.noise.append(str(error)))
        page.on("request", lambda request: page.requests.append(request.url))
        yield page
        browser.close()


@pytest.fixture
def page(tab: Any, folder: Path) -> Iterator[Any]:
    tab.noise.clear()
    tab.goto((folder / "out" / "audit.html").as_uri())
    yield tab
    assert tab.noise == []
    assert all(url.startswith(("file:", "data:")) for url in tab.requests)


def test_it_opens_without_a_network_and_fits(page: Any) -> None:
    assert page.locator("h1").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    page.set_viewport_size({"width": 1200, "height": 900})


def column(page: Any, table: str, index: int) -> list[str]:
    found: list[str] = page.locator(f"{table} tbody tr").evaluate_all(
        "(rows, i) => rows.map(r => r.cells[i].dataset.v ?? r.cells[i].textContent)", index
    )
    return found


def test_tables_sort_by_keyboard_both_ways_and_say_so(page: Any) -> None:
    page.locator("details", has_text="int4-row").last.locator("summary").press("Enter")
    header = page.locator("#tensors-0 thead th", has_text="Code flips")
    button = header.get_by_role("button")
    button.focus()
    flips = sorted(int(x) for x in column(page, "#tensors-0", 3))
    for key, order, word in (("Enter", 1, "ascending"), ("Space", -1, "descending")):
        page.keyboard.press(key)
        assert [int(x) for x in column(page, "#tensors-0", 3)] == flips[::order]
        assert header.get_attribute("aria-sort") == word
        assert page.get_by_role("status").text_content() == f"sorted by Code flips, {word}"
    assert page.locator("#tensors-0 th[aria-sort]").count() == 1
    page.locator("#tensors-0 thead th", has_text="Tensor").get_by_role("button").press("Enter")
    names = column(page, "#tensors-0", 0)
    assert len(names) == LAYERS * len(KINDS) + 1
    assert names == sorted(names)
    assert page.locator("#tensors-0 th[aria-sort]").count() == 1


def test_rows_are_filtered_by_name(page: Any) -> None:
    page.locator("details", has_text="int4-row").last.locator("summary").click()
    page.get_by_label("Show tensors whose name holds").first.fill("Q_PROJ")
    shown = page.locator("#tensors-0 tbody tr:visible")
    assert shown.count() == LAYERS
    assert page.get_by_role("status").text_content() == f"{LAYERS} of {LAYERS * 2 + 1} tensors"
    page.get_by_label("Show tensors whose name holds").first.fill("")
    assert shown.count() == LAYERS * 2 + 1


def test_one_map_is_shown_at_a_time_and_leads_to_the_tensor(page: Any) -> None:
    maps = page.locator('[data-group="map-format"]')
    assert maps.count() == len(FORMATS)
    assert [maps.nth(i).is_visible() for i in range(2)] == [True, False]
    page.get_by_label("Format", exact=True).select_option("int8-row")
    assert [maps.nth(i).is_visible() for i in range(2)] == [False, True]
    link = maps.nth(1).locator("a").nth(1)
    row = page.locator(f"#{link.get_attribute('data-row')}")
    assert not row.is_visible()
    link.press("Enter")
    assert row.is_visible()
    place = link.get_attribute("href")
    page.wait_for_url(lambda url: url.endswith(place))


def test_everything_is_reached_by_tab_and_has_a_name(page: Any) -> None:
    wanted = page.locator("button:visible, select:visible, summary:visible, .map a:visible").count()
    page.locator("body").press("Tab")
    reached: set[str] = set()
    for _ in range(20 + 2 * wanted):
        reached.add(
            page.evaluate(
                """() => { const e = document.activeElement;
                   if (!e || e === document.body) return "";
                   const name = e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.[0]?.textContent;
                   const outline = getComputedStyle(e).outlineStyle;
                   return e.tagName + "|" + (name ? "named" : "nameless") + "|" + outline + "|" +
                       [...document.querySelectorAll("*")].indexOf(e); }"""
            )
        )
        page.keyboard.press("Tab")
    reached.discard("")
    parts = [place.split("|") for place in reached]
    assert {part[1] for part in parts} == {"named"}
    assert "none" not in {part[2] for part in parts}
    active = [part for part in parts if part[0] in ("BUTTON", "SELECT", "SUMMARY", "A")]
    assert len(active) == wanted


def test_nothing_is_hidden_where_scripts_are_off(folder: Path, tab: Any) -> None:
    context = tab.context.browser.new_context(offline=True, java_script_enabled=False)
    plain = context.new_page()
    plain.set_default_timeout(1000 * HANG_SECONDS)
    plain.goto((folder / "out" / "audit.html").as_uri())
    maps = plain.locator('[data-group="map-format"]')
    assert [maps.nth(i).is_visible() for i in range(2)] == [True, True]
    assert plain.locator("select, input").first.is_hidden()
    context.close()


def luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance of WCAG 2.2."""
    parts = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("gain", [None, -3.0, 0.0, 0.3, 1.0, 1.4, 2.0, 9.0])
def test_ink_is_read_on_every_colour(gain: float | None) -> None:
    """A contrast of 4.5, as WCAG 2.2 AA asks for."""
    colour = colour_of(gain)
    behind = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    light, dark = luminance(behind) + 0.05, luminance(BLACK_INK) + 0.05  # type: ignore[arg-type]
    assert light / dark >= 4.5


def test_maps_hold_every_tensor_once(tmp_path: Path) -> None:
    leg = weights_leg(*open_pair(*pair(tmp_path)), FORMATS)
    maps = layer_maps("weights", tensor_rows(leg))
    assert [m.format for m in maps] == list(FORMATS)
    for m in maps:
        names = [cell.name for line in m.lines for cell in line.cells if cell is not None]
        assert sorted(names) == sorted(t.name for t in leg.tensors)
        assert [line.layer for line in m.lines] == [str(i) for i in range(LAYERS)]


def test_kind_is_the_name_after_its_layer() -> None:
    assert kind_of("model.layers.12.mlp.up_proj.weight") == "mlp.up_proj.weight"
    assert kind_of("lm.weight") == "weight"
