"""The study `phase-diagram`: the ratio of a cell by hand, which cells have none, and that the published rows are of all runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from unforgotten.audit.progress.stages import SILENT
from unforgotten.experiments.studies.phase_diagram import STUDY, PhaseSettings, assumed_ratios, border, phase_rows
from unforgotten.experiments.studies.registry import load_study
from unforgotten.records.files import read_json_lines
from unforgotten.records.packed_rows import rows_content
from unforgotten.records.rows import Run, read_run
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.laws.regimes import swallowing_absmax

PUBLISHED = Path(__file__).parents[3] / "reports/published"
RUN = Path(__file__).parents[2] / "reports/small_runs/one-arm-seed0"
FLOAT64 = 2.0**-40
"""Of a quotient in float64."""
MEDIAN_OF_DRAWS = 0.004
"""Four standard errors of a median of 100,000 blocks: 1.26 / sqrt(100,000) of their spread, which is a fifth of it; and a border of 4 digits."""


def copied(folder: Path, settings: dict[str, object], **change: object) -> Run:
    """The small run with other settings, and other fields of its rows on unlearned models."""
    folder.mkdir()
    shutil.copy(RUN / "config.json", folder)
    config = json.loads((folder / "config.json").read_text())
    for name, value in settings.items():
        section, _, key = name.partition(".")
        config[section][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    rows = [json.loads(line) for line in rows_content(RUN).splitlines()]
    changed = [row | (change if row["model"] == "unlearned" else {}) for row in rows]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    return read_run(folder)


def test_the_ratio_of_a_cell_is_that_of_hand(tmp_path: Path) -> None:
    """lr 5e-5: half the spacing of bf16 in [2^-7, 2^-6) is 2^-15 = 3.1e-5, in the next binade 6.1e-5; so the edge is 2^-6."""
    found = {row["format"]: row for row in phase_rows("x", copied(tmp_path / "run", {}))}
    assert list(found) == ["int4-g64", "fp4-b64", "nf4-b64"]
    for name, share in (("int4-g64", 1 / 14), ("fp4-b64", 0.0859375), ("nf4-b64", 0.03979014977812767)):
        row = found[name]
        assert row["edge"] == 2.0**-6
        assert row["ratio"] == pytest.approx(2.0**-6 / (share * row["block_absmax"]), rel=FLOAT64)
        assert row["came_back"] is not None


def test_fp32_parameters_have_the_edge_of_float32(tmp_path: Path) -> None:
    rows = list(phase_rows("x", copied(tmp_path / "run", {}, storage="fp32")))
    assert {row["edge"] for row in rows} == {2.0**10}  # 16 significant bits more than bfloat16


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({"models.stored_in": "int4-g64"}, {}),
        ({"unlearning.optimizer": "sign"}, {}),
        ({}, {"storage": "bf16-sr"}),
        ({}, {"method": "NPO_GDR_LoRA"}),
        ({}, {"method": "NPO_GDR_push+twice"}),
        ({}, {"lr": None}),
    ],
)
def test_what_the_number_cannot_be_said_of_has_no_row(
    settings: dict[str, object], change: dict[str, object], tmp_path: Path
) -> None:
    assert list(phase_rows("x", copied(tmp_path / "run", settings, **change))) == []


def test_a_quantizer_with_a_colon_has_no_row(tmp_path: Path) -> None:
    run = copied(tmp_path / "run", {})
    rows = [json.loads(line) for line in rows_content(tmp_path / "run").splitlines()]
    gptq = [row | {"format": "gptq:int4-g64"} for row in rows if row["format"] == "int4-g64"]
    (tmp_path / "run/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *gptq]))
    assert list(phase_rows("x", read_run(tmp_path / "run"))) == list(phase_rows("x", run))


@pytest.mark.parametrize("name", ["int2-g64", "int3-g64", "int4-row", "int8-row", "nf4-b64", "nf4-b1024"])
def test_the_border_is_the_first_threshold_but_for_fp4(name: str) -> None:
    fmt = format_named(name)
    assert border(fmt) == pytest.approx(1 / swallowing_absmax(fmt, 1.0), rel=FLOAT64)
    fp4 = format_named("fp4-b64")
    assert border(fp4) > 30 / swallowing_absmax(fp4, 1.0)
    with pytest.raises(ValueError, match="absmax"):
        border(format_named("q4_k"))


def test_the_assumed_model_has_a_number_for_each_rate_and_format() -> None:
    found = {(row["format"], row["lr"]): row["ratio"] for row in assumed_ratios()}
    for name in ("int4-g64", "fp4-b64", "nf4-b64", "int8-row"):
        assert found[name, 1e-4] == 8 * found[name, 1e-5]  # edges are powers of 2
    draws = np.abs(np.random.default_rng(0).normal(0, 0.02, (100_000, 64))).max(axis=1)
    assert found["nf4-b64", 1e-5] == pytest.approx(2.0**-8 / (0.03979 * float(np.median(draws))), rel=MEDIAN_OF_DRAWS)


def test_the_published_rows_are_those_of_all_published_runs(tmp_path: Path) -> None:
    asked = load_study("phase-diagram").settings
    assert isinstance(asked, PhaseSettings)
    settings = PhaseSettings(published=PUBLISHED, unseen=asked.unseen)
    (tmp_path / "out").mkdir()
    STUDY.measure(settings, tmp_path / "out", SILENT)
    assert read_json_lines(tmp_path / "out/rows.jsonl") == read_json_lines(PUBLISHED / "phase-diagram/rows.jsonl")
    with pytest.raises(ValueError, match="published must hold runs"):
        STUDY.measure(PhaseSettings(published=tmp_path), tmp_path / "out", SILENT)
