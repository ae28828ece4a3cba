"""What masks buy is a difference to no mask, seed by seed, and the words on the page follow from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from unforgotten.records.packed_rows import rows_content
from unforgotten.reports.verdicts.claims import claims
from unforgotten.reports.verdicts.evidence import Evidence
from unforgotten.reports.verdicts.masks import masks, missed

PUBLISHED = Path(__file__).parents[3] / "reports" / "published"
RUN = Path(__file__).parents[1] / "small_runs/one-arm-seed0"
MODULE, ROW = "NPO_GDR_SURE+module-90", "NPO_GDR_SURE+row-90"
NAMES = ("C3", "Open question 2", "Open question 3", "Next check 3")
FLOAT64 = 2.0**-40
"""Of a difference of means in float64."""

Shift = dict[str, float]


def study(folder: Path, shifts: Sequence[dict[str, Shift]]) -> Evidence:
    """A study of a seed for each of `shifts`: a published arm, and masks whose values are off by what they say of metrics."""
    lines = [json.loads(line) for line in rows_content(RUN).splitlines()]
    for seed, by_method in enumerate(shifts):
        place = folder / "sure" / f"bf16-seed{seed}"
        place.mkdir(parents=True)
        rows = [row | {"seed": seed} for row in lines]
        for method, shift in by_method.items():
            rows += [moved(row, method, shift) | {"seed": seed} for row in lines if row["method"] == "NPO_GDR"]
        (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (place / "config.json").write_text("{}")
    return Evidence(folder)


def moved(row: dict[str, Any], method: str, shift: Shift) -> dict[str, Any]:
    off = shift.get(row["metric"], 0.0)
    return row | {"method": method, "value": None if row["value"] is None else row["value"] + off}


def words(evidence: Evidence) -> dict[str, str]:
    (evidence.published / "functional-gain").mkdir(parents=True, exist_ok=True)
    rows = (PUBLISHED / "functional-gain" / "rows.jsonl").read_text()
    (evidence.published / "functional-gain" / "rows.jsonl").write_text(rows)
    return {claim.name: claim.word for claim in claims(evidence) if claim.name in NAMES}


def test_a_difference_is_that_of_a_seed(tmp_path: Path) -> None:
    evidence = study(tmp_path, [{MODULE: {"gain": -0.2, "M4": 1.0}}, {MODULE: {"gain": -0.4, "M4": 3.0}}])
    (mask,) = masks(evidence)
    assert (mask.part, mask.threshold, mask.gain.seeds) == ("module", 90, 2)
    assert mask.gain.value == pytest.approx(-0.3, rel=FLOAT64)
    assert mask.utility.value == pytest.approx(2.0, rel=FLOAT64)
    assert mask.back.value == pytest.approx(0.0, abs=FLOAT64)


def test_masks_that_change_nothing_are_alike_and_stable(tmp_path: Path) -> None:
    tiny = {MODULE: {"gain": 0.001}, ROW: {"gain": 0.001}}
    other = {MODULE: {"gain": 0.002}, ROW: {"gain": 0.003}}
    evidence = study(tmp_path, [tiny, other])
    assert [mask.differs for mask in masks(evidence)] == [False, False]
    assert set(words(evidence).values()) == {"in part"}


def test_one_that_loses_the_update_on_every_seed_refutes_c3(tmp_path: Path) -> None:
    evidence = study(tmp_path, [{MODULE: {"gain": -0.5}}, {MODULE: {"gain": -0.52}}])
    assert [mask.differs for mask in masks(evidence)] == [True]
    found = words(evidence)
    assert found == {
        "C3": "refuted",
        "Open question 2": "open",
        "Open question 3": "in part",
        "Next check 3": "in part",
    }


def test_one_that_costs_m4_on_a_seed_is_not_stable(tmp_path: Path) -> None:
    evidence = study(tmp_path, [{MODULE: {"M4": -6.0}}, {MODULE: {"M4": 6.0}}])
    assert words(evidence)["Open question 2"] == "open"
    assert (
        words(study(tmp_path / "less", [{MODULE: {"M4": -1.0}}, {MODULE: {"M4": -1.0}}]))["Open question 2"]
        == "in part"
    )


def test_one_seed_leaves_all_open(tmp_path: Path) -> None:
    assert set(words(study(tmp_path, [{MODULE: {"gain": -0.5}}])).values()) == {"open"}


def test_seeds_that_disagree_leave_c3_open(tmp_path: Path) -> None:
    evidence = study(tmp_path, [{MODULE: {"gain": -0.5}}, {MODULE: {"gain": 0.5}}])
    assert masks(evidence)[0].differs is None
    assert words(evidence)["C3"] == "open"


def test_a_seed_without_the_plain_arm_does_not_count_and_no_study_is_not_measured(tmp_path: Path) -> None:
    evidence = study(tmp_path, [{MODULE: {}}, {MODULE: {}}])
    path = tmp_path / "sure" / "bf16-seed1" / "rows.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines() if '"NPO_GDR"' not in line))
    assert masks(evidence)[0].gain.seeds == 1
    assert masks(Evidence(tmp_path / "none")) == []
    (tmp_path / "none").mkdir()
    assert set(words(Evidence(tmp_path / "none")).values()) == {"not measured"}


def test_a_mask_that_moves_no_quantized_weight_is_told_apart() -> None:
    evidence = Evidence(PUBLISHED)
    assert {(mask.part, mask.threshold) for mask in missed(evidence)} == {("module", 99), ("layer", 90)}
    assert all("18.2 % of the weights" in mask.told and "after 300 steps" in mask.told for mask in missed(evidence))
    assert {mask.method for mask in masks(evidence)}.isdisjoint({"NPO_GDR_SURE+module-99", "NPO_GDR_SURE+layer-90"})
    told = {claim.name: " ".join(claim.found) for claim in claims(evidence)}
    assert "Mask by layer, threshold 90, seeds 0, 1, 2: it leaves" in told["Open question 3"]
    assert "Mask by module, threshold 99, seeds 0, 1, 2: it leaves" in told["Next check 3"]


def test_a_mask_that_did_not_reach_the_depth_is_not_beside_one_that_did(tmp_path: Path) -> None:
    evidence = study(tmp_path, [{MODULE: {"gain": -0.5}, ROW: {}}])
    path = tmp_path / "sure" / "bf16-seed0" / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "".join(json.dumps(row | ({"depth": "end"} if row["method"] == MODULE else {})) + "\n" for row in rows)
    )
    assert [mask.method for mask in masks(evidence)] == [ROW]
    (told,) = missed(evidence)
    assert (told.part, told.threshold) == ("module", 90)
    assert "did not reach the depth" in told.told
