"""Another optimizer stands beside the AdamW whose update is as large against the step, seed by seed, and C3's word follows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from unforgotten.records.packed_rows import rows_content
from unforgotten.reports.verdicts.evidence import Evidence
from unforgotten.reports.verdicts.masks import mask_claims
from unforgotten.reports.verdicts.optimizers import (
    MATCHED,
    compared,
    optimized,
    optimizer_folders,
    optimizer_sentences,
    optimizer_tables,
)

RUN = Path(__file__).parents[1] / "small_runs/one-arm-seed0"
LINES = [json.loads(line) for line in rows_content(RUN).splitlines()]
WEIGHTS = next(row["n"] for row in LINES if row["metric"] == "weight_std")
FLOAT64 = 2.0**-40
"""Of a difference of means in float64."""


class Arm(NamedTuple):
    """An arm: mean |delta| over the step, gain, and points by which M4 is off."""

    size: float
    gain: float
    points: float = 0.0


def write(folder: Path, study: str, level: str, seed: int, arms: Mapping[str, Arm]) -> None:
    place = folder / study / f"{level}-seed{seed}"
    place.mkdir(parents=True)
    rows = [row for row in LINES if row["model"] != "unlearned"]
    for method, arm in arms.items():
        given = {"gain": arm.gain, "expected_flips": arm.size * WEIGHTS}
        for row in LINES:
            if row["model"] == "unlearned":
                value = row["value"] if row["metric"] != "M4" else row["value"] + arm.points
                rows.append(row | {"method": method, "value": given.get(row["metric"], value)})
    (place / "rows.jsonl").write_text("".join(json.dumps(row | {"seed": seed}) + "\n" for row in rows))
    (place / "config.json").write_text("{}")


def studies(folder: Path, others: Mapping[str, Mapping[str, Arm]], seeds: int = 3) -> Evidence:
    for seed in range(seeds):
        write(folder, "dead-zone", "bf16", seed, {"NPO_GDR+slow": Arm(0.01, 0.2), "NPO_GDR+fast": Arm(0.04, 1.0)})
        for level, arms in others.items():
            write(folder, "optimizers", level, seed, arms)
    return Evidence(folder)


def test_it_stands_beside_the_update_that_is_nearest_in_size(tmp_path: Path) -> None:
    evidence = studies(
        tmp_path, {"sign": {"NPO_GDR+a": Arm(0.012, 0.25, 2.0)}, "lora": {"NPO_GDR_LoRA": Arm(0.03, 0.9)}}
    )
    lora, sign = compared(evidence)
    assert sign.gain is not None
    assert sign.utility is not None
    assert sign.gain.value == pytest.approx(0.05, rel=FLOAT64)
    assert sign.utility.value == pytest.approx(2.0, rel=FLOAT64)
    assert sign.ratio == pytest.approx(1.2, rel=FLOAT64)
    assert lora.gain is not None
    assert lora.gain.value == pytest.approx(-0.1, rel=FLOAT64)
    assert (sign.gain.seeds, lora.gain.seeds) == (3, 3)
    assert [one.name.split(" at lr")[0] for one in optimized(evidence)] == ["AdamW", "AdamW", "LoRA", "sign descent"]


@pytest.mark.parametrize(("ratio", "there"), [(MATCHED - 0.01, True), (MATCHED + 0.01, False)])
def test_nothing_stands_beside_an_update_of_another_size(ratio: float, there: bool, tmp_path: Path) -> None:
    evidence = studies(tmp_path, {"lora": {"NPO_GDR_LoRA": Arm(0.04 * ratio, 1.0)}})
    (one,) = compared(evidence)
    assert (one.gain is not None) is there
    assert one.differs is (False if there else None)
    assert any("no AdamW has an update of its size" in told for told in optimizer_sentences(evidence)) is not there


def test_the_table_has_each_optimizer_with_its_size_and_its_gain(tmp_path: Path) -> None:
    (told,) = optimizer_tables(studies(tmp_path, {"lora": {"NPO_GDR_LoRA": Arm(0.04, 0.5)}}))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.text.splitlines()[2:]]
    names, _, sizes, gains, _, seeds = zip(*cells, strict=True)
    assert [name.split(" at lr")[0] for name in names] == ["AdamW", "AdamW", "LoRA"]
    assert sizes[-1] == "0.040 [0.040, 0.040]"
    assert gains[-1] == "0.50 [0.50, 0.50]"
    assert set(seeds) == {"3"}


@pytest.mark.parametrize(("gain", "word"), [(0.2, "in part"), (0.25, "in part"), (0.5, "refuted")])
def test_c3_is_refuted_by_an_optimizer_that_differs(gain: float, word: str, tmp_path: Path) -> None:
    evidence = studies(tmp_path, {"sign": {"NPO_GDR+a": Arm(0.01, gain)}})
    for seed in range(3):
        write(tmp_path, "sure", "bf16", seed, {"NPO_GDR": Arm(0.04, 1.0), "NPO_GDR_SURE+module-90": Arm(0.04, 1.0)})
    claim = mask_claims(evidence)["C3"]
    assert claim.word == word
    assert ("other than AdamW: sign descent at lr 5e-05" in claim.scope) is (word == "refuted")
    assert "zeroth-order optimizers are not measured" in claim.scope
    assert "optimizers/sign-seed0" in claim.rows


def test_seeds_that_disagree_cannot_tell(tmp_path: Path) -> None:
    evidence = studies(tmp_path, {}, seeds=2)
    for seed, gain in enumerate((0.0, 0.9)):
        write(tmp_path, "optimizers", "sign", seed, {"NPO_GDR+a": Arm(0.01, gain)})
    assert compared(evidence)[0].differs is None


def test_without_the_study_there_is_nothing_to_say(tmp_path: Path) -> None:
    evidence = studies(tmp_path, {})
    assert compared(evidence) == []
    assert optimizer_sentences(evidence) == []
    assert optimizer_tables(evidence) == ()
    assert optimizer_folders(evidence) == ()
