"""A run with quantizers that calibrate, round at random or quantize inputs: their rows are as those of other formats, and say the text."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the loop needs unforgotten[experiments]")

from unforgotten.experiments.data.corpus import Corpus
from unforgotten.experiments.data.prepare import prepare_corpus
from unforgotten.experiments.evaluation import values_rows
from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.run import run
from unforgotten.records.rows import Run, read_run
from unforgotten.reports.run.build import build_report

SUMS = 4 * 2.0**-53
"""Relative error per term of a quotient of two float64 sums in another order."""
MICRO = Path(__file__).parents[2] / "micro.yaml"
TEXTS = {
    "none": None,
    "int4-g64": None,
    "int4-g64-dither": None,
    "gptq:int4-g64": "generic",
    "gptq-forget:int4-g64": "forget",
    "awq-retain:int4-g64-asym": "retain",
    "gptq-retain:int4-g64": "retain",
    "dynamic:int8-row": None,
    "smoothquant-retain:int8-row": "retain",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "whole"
    settings = {"only_methods": ["NPO"], "storages": ["fp32"], "formats": [name for name in TEXTS if name != "none"]}
    run(load_config(str(MICRO), settings=settings), folder, resume=False)
    return folder


@pytest.fixture(scope="module")
def rows(whole: Path) -> Run:
    return read_run(whole)


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "none"])
def test_a_format_has_its_measurements_and_effects(rows: Run, name: str) -> None:
    for metric in ("M1", "M2", "M3", "M4", "forget_loss"):
        for model in ("target", "retrained"):
            assert rows.get(metric, model, format=name) is not None
        assert rows.get(metric, "unlearned", "NPO", "fp32", name) is not None
    of_the_pair = ("rho_M1", "rho_M2", "lost_effect", "gating_effect", "base_shift_effect", "gain", "cosine")
    for metric in (*of_the_pair, "value_changes", "unchanged_fraction"):
        assert rows.get(metric, "unlearned", "NPO", "fp32", name) is not None
    lost, gating, base_shift = (rows.value(effect, "unlearned", "NPO", "fp32", name) for effect in of_the_pair[2:5])
    assert gating is not None
    assert base_shift is not None
    assert lost == pytest.approx(gating + base_shift)


def test_codes_are_counted_where_the_values_are_those_of_a_format_of_ours(rows: Run) -> None:
    flips = {name: rows.get("code_flips", "unlearned", "NPO", "fp32", name) for name in TEXTS if name != "none"}
    assert [name for name, row in flips.items() if row is not None] == ["int4-g64", "dynamic:int8-row"]


def test_every_row_says_the_text_of_its_format(rows: Run) -> None:
    assert {(row.format, row.calibration) for row in rows.rows} == set(TEXTS.items())


def test_a_report_names_them(whole: Path, rows: Run) -> None:
    page = build_report([whole], whole / "report.html").read_text()
    assert all(name in page for name in rows.formats)


def test_values_tell_what_the_codes_tell() -> None:
    """Gain, cosine and changes of values are those of the audit's code, where both can say them."""
    from unforgotten.experiments.quantizers.registry import quantize_state
    from unforgotten.theory.formats.names import format_named
    from unforgotten.theory.laws.update import survival

    rng = np.random.default_rng(0)
    w = rng.normal(0, 0.02, (16, 128)).astype(np.float32)
    moved = np.where(rng.random(w.shape) < 0.5, w, w + rng.normal(0, 1e-3, w.shape)).astype(np.float32)
    before, after = ({"w": torch.from_numpy(x)} for x in (w, moved))
    quantized = [quantize_state(state, ["w"], "int4-g64") for state in (before, after)]
    rows = {m.metric: m for m in values_rows(["w"], before, after, *quantized)}
    theirs = survival(w, moved, format_named("int4-g64"), "adaptive")
    assert rows["value_changes"].value == theirs.value_changes
    assert rows["unchanged_fraction"].value == theirs.unchanged_fraction
    assert rows["gain"].value == pytest.approx(theirs.gain, rel=SUMS * w.size)
    assert rows["cosine"].value == pytest.approx(theirs.cosine, rel=SUMS * w.size)
    assert {m.n for m in rows.values()} == {w.size}


def test_a_corpus_without_generic_text_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(str(MICRO), settings={"formats": ["gptq:int4-g64"]})

    def without(*arguments: Any) -> tuple[Corpus, str]:
        corpus, origin = prepare_corpus(*arguments)
        return dataclasses.replace(corpus, general=()), origin

    monkeypatch.setattr("unforgotten.experiments.inputs.prepare_corpus", without)
    with pytest.raises(ValueError, match="retain or forget where a corpus has no generic text"):
        run(config, tmp_path / "run", resume=False)
    assert not (tmp_path / "run" / "models").exists()
