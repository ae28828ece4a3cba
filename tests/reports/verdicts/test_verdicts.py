"""The page of verdicts is made of the published rows, and its words follow from them by the rules it states."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_1samp

from unforgotten.records.packed_rows import holds_rows, rows_content
from unforgotten.records.rows import read_run
from unforgotten.reports.run.conjectures import conjectures
from unforgotten.reports.verdicts.claim import Claim
from unforgotten.reports.verdicts.claims import claims
from unforgotten.reports.verdicts.cures import cure_rows, cures
from unforgotten.reports.verdicts.evidence import FOUR_BITS, Evidence, over_seeds
from unforgotten.reports.verdicts.page import NAME, page
from unforgotten.reports.verdicts.paper import CELLS, RETAINED, headline

PUBLISHED = Path(__file__).parents[3] / "reports" / "published"
SMALL = Path(__file__).parents[1] / "small_runs/one-arm-seed0"
FORMATS = (*FOUR_BITS, "int4-g64-dither")
FLOAT64 = 2.0**-40
"""Of a mean or a quantile in float64, beside one by another order of sums."""


def test_the_committed_page_is_that_of_the_rows() -> None:
    assert (PUBLISHED / NAME).read_text(encoding="utf-8") == page(PUBLISHED)


def test_every_folder_is_named_on_the_page() -> None:
    text = page(PUBLISHED)
    for folder in PUBLISHED.iterdir():
        if folder.is_dir() and not folder.name.startswith("tiny-sheets"):
            assert folder.name in text


def test_links_of_claims_lead_to_rows() -> None:
    for claim in claims(Evidence(PUBLISHED)):
        assert all(holds_rows(PUBLISHED / name) for name in claim.rows)


def test_intervals_are_students_over_the_means_of_seeds() -> None:
    values = [(0, 1.0), (0, 2.0), (1, 4.0), (2, 3.0), (3, 3.5)]
    found = over_seeds(values)
    low, high = ttest_1samp([1.5, 4.0, 3.0, 3.5], 0).confidence_interval(0.95)
    assert (found.value, found.seeds) == (3.0, 4)
    assert found.low == pytest.approx(low, rel=FLOAT64)
    assert found.high == pytest.approx(high, rel=FLOAT64)
    alone = over_seeds([(7, 0.5)])
    assert (alone.low, alone.high) == (-math.inf, math.inf)
    assert alone.text(str) == "0.5 (one seed)"
    with pytest.raises(ValueError, match="got none"):
        over_seeds([])


def row(method: str, storage: str, seed: int, name: str, gain: float, back: float) -> dict[str, Any]:
    return {
        "method": method,
        "storage": storage,
        "seed": seed,
        "format": name,
        "gain": gain,
        "functional_gain": 1.0,
        "target_loss": 0.0,
        "loss": 1.0,
        "came_back": back,
        "came_back_gating": back,
        "first_order": 1.0,
    }


def judged(folder: Path, gains: Mapping[str, float], backs: Mapping[str, float]) -> dict[str, Claim]:
    """Claims from rows of two seeds, GA and NPO, with these gains and shares that came back, by arm and method."""
    place = folder / "functional-gain"
    place.mkdir(parents=True)
    rows = []
    for seed in (0, 1):
        for storage in ("fp32", "bf16"):
            for method in ("GA", "NPO"):
                key = "fp32" if storage == "fp32" else method
                for name in FORMATS:
                    gain = 1.0 if name in ("nf4-b64", "int4-g64-dither") else gains[key] + 0.01 * seed
                    rows.append(row(method, storage, seed, name, gain, backs[key] + 0.001 * seed))
    (place / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return {claim.name: claim for claim in claims(Evidence(folder))}


def test_c2_is_confirmed_where_update_and_memory_follow_it(tmp_path: Path) -> None:
    found = judged(tmp_path, {"fp32": 1.0, "GA": 0.5, "NPO": 0.5}, {"fp32": 0.0, "GA": 0.3, "NPO": 0.3})["C2"]
    assert found.word == "confirmed"
    assert "comes back in part after GA and NPO" in found.scope


def test_c2_is_in_part_where_memory_does_not_come_back(tmp_path: Path) -> None:
    found = judged(tmp_path, {"fp32": 1.0, "GA": 0.5, "NPO": 0.5}, {"fp32": 0.0, "GA": -0.3, "NPO": 0.3})["C2"]
    assert found.word == "in part"
    assert found.scope.endswith("after NPO, and falls further after GA")


@pytest.mark.parametrize("gains", [{"fp32": 0.5, "GA": 0.5, "NPO": 0.5}, {"fp32": 1.0, "GA": 0.5, "NPO": 1.0}])
def test_c2_is_refuted_where_the_update_does_not_follow_it(gains: dict[str, float], tmp_path: Path) -> None:
    found = judged(tmp_path, gains, {"fp32": 0.0, "GA": 0.3, "NPO": 0.3})
    assert found["C2"].word == "refuted"
    assert found["C2"].scope.startswith("not even of the update")
    assert found["C4"].word == ("in part" if gains["fp32"] == 1.0 else "refuted")


def test_cures_are_means_over_coarse_formats_and_seeds(tmp_path: Path) -> None:
    names = {0: "tiny-arms-seed0", 1: "tiny-seed0"}
    runs = {seed: read_run(PUBLISHED / name) for seed, name in names.items()}
    for seed, name in names.items():
        folder = tmp_path / "cures" / f"plain-seed{seed}"
        shutil.copytree(PUBLISHED / name, folder, ignore=shutil.ignore_patterns("items*", "*.html"))
    (tmp_path / "cures" / "notes").mkdir()
    found = {cure.name: cure for cure in cures(Evidence(tmp_path))}
    cure = found["NPO_GDR, bf16"]
    gains, backs, points = [], [], []
    for run in runs.values():
        at = ("NPO_GDR", "bf16")
        before, after = run.value("forget_loss", "target") or 0.0, run.value("forget_loss", "unlearned", *at) or 0.0
        quantized = [run.value("forget_loss", "unlearned", *at, name) or 0.0 for name in ("int4-g64", "fp4-b64")]
        gains.append(sum(run.value("gain", "unlearned", *at, name) or 0.0 for name in ("int4-g64", "fp4-b64")) / 2)
        backs.append(sum((after - loss) / (after - before) for loss in quantized) / 2)
        points.append((run.value("M4", "unlearned", *at) or 0.0) - (run.value("M4", "target") or 0.0))
    for mean, values in ((cure.gain, gains), (cure.back, backs), (cure.utility, points)):
        assert mean.value == pytest.approx(sum(values) / 2, rel=FLOAT64)
        assert mean.seeds == 2
    assert found["NPO_GDR, bf16-sr"].gain.seeds == 1
    assert cure.lr == 1e-5
    line = cure_rows([cure])[0]
    assert line[:3] == ("as far as it went", "NPO_GDR, bf16", "1e-05")
    assert line[4].startswith(f"{sum(gains) / 2:.2f} [")


def test_cures_are_told_apart_by_depth(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in rows_content(SMALL).splitlines()]
    for seed in range(2):
        folder = tmp_path / "cures" / f"bf16-seed{seed}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        deeper = [
            row | {"depth": "1.5", "value": 1.0 if row["metric"] == "gain" else row["value"]}
            for row in rows
            if row["model"] == "unlearned" and seed == 0
        ]
        text = "".join(json.dumps(row | {"seed": seed}) + "\n" for row in [*rows, *deeper])
        (folder / "rows.jsonl").write_text(text)
    shallow, deep = cures(Evidence(tmp_path))
    assert (shallow.depth, shallow.gain.seeds) == ("0.6", 2)
    assert (deep.depth, deep.gain.seeds, deep.gain.value) == ("1.5", 1, 1.0)
    assert shallow.gain.value < 1.0
    assert [line[0] for line in cure_rows([shallow, deep])] == ["forget loss 0.6", "forget loss 1.5"]


def test_published_numbers_are_put_in_relation() -> None:
    cells = {(cell.data, cell.method, cell.quantizer): cell for cell in CELLS}
    npo = cells["BOOKS", "NPO_KLR", "bitsandbytes"]
    assert npo.back == pytest.approx((70.9 - 12.4) / (99.8 - 12.4))
    assert npo.of_quantized_target == pytest.approx(70.9 / 85.3)
    assert cells["NEWS", "GA", "bitsandbytes"].back == 0
    assert all(-0.1 < cell.back <= 1 for cell in CELLS)
    text = " ".join(page(PUBLISHED).split())
    of = {data: {c.method: c.of_quantized_target for c in CELLS if c.data == data} for data in ("NEWS", "BOOKS")}
    news, books = (sorted(of[data][method] for method in RETAINED) for data in of)
    floors = {data: found["retrained"] for data, found in of.items()}
    assert of["NEWS"]["GA_GDR"] == news[0]
    told = (
        f"three of these four end at {per_cent(news[1])} to {per_cent(news[-1])} % of the quantized target, GA_GDR at {per_cent(news[0])} %, "
        f"where the retrained model has {per_cent(floors['NEWS'])} %"
    )
    assert told in text
    assert (
        f"On BOOKS they end at {per_cent(books[0])} to {per_cent(books[-1])} %, the retrained model at {per_cent(floors['BOOKS'])} %"
        in text
    )


def per_cent(x: float) -> str:
    return f"{100 * x:.0f}"


def test_the_headline_of_the_paper_is_a_share_of_the_target_in_the_same_precision() -> None:
    """Sums of M1 and M2 over both data sets: 240.6 of 1126.0 and 697.0 of 842.8."""
    told = headline()
    assert told.full == pytest.approx(240.6 / 1126.0)
    assert told.quantized == pytest.approx(697.0 / 842.8)
    assert told.of_full == pytest.approx(697.0 / 1126.0)
    assert (per_cent(told.full), per_cent(told.quantized)) == ("21", "83")
    retrained = headline(["retrained"])
    assert retrained.full == pytest.approx(4 * 97.1 / 1126.0)
    assert retrained.quantized == pytest.approx(4 * 92.2 / 842.8)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(-0.2, 0.01, "confirmed"), (0.05, 0.1, "refuted"), (0.0, 0.1, "open")]
)
def test_gptq_is_judged_by_what_its_cells_bring_back(low: float, high: float, verdict: str) -> None:
    """Of 0.18 nats that unlearning added, a tenth is little."""
    run = read_run(PUBLISHED / "smollm2-seed0")
    rows = tuple(
        replace(row, value=(low + high) / 2, interval=(low, high))
        if (row.metric, row.storage, row.format) == ("gating_effect", "bf16", "gptq-retain:int4-g64")
        else row
        for row in run.rows
    )
    (prediction,) = (p for p in conjectures(replace(run, rows=rows))[1].predictions if p.statement.startswith("GPTQ"))
    assert prediction.verdict == f"{verdict} here"


def test_calibrated_formats_are_of_no_family() -> None:
    told = {p.statement: p.found for p in conjectures(read_run(PUBLISHED / "smollm2-seed0"))[1].predictions}
    assert told["With bf16 parameters int4 and fp4 swallow part of the update"].startswith("1 of 1 cases")
