"""The study of what each format costs an audit: rows of every format, and a table that names the slow ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="studies need unforgotten[experiments]")

from unforgotten.audit.kernel.simd import VARIABLE
from unforgotten.audit.mixes.mix import check_name
from unforgotten.experiments.studies.format_cost import FORMATS
from unforgotten.experiments.studies.registry import load_study
from unforgotten.records.files import read_json_lines
from unforgotten.reports.studies.format_cost import SLOW, cost_table


def test_it_times_each_format_over_the_yardstick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "numpy")  # for which nothing is compiled
    study = load_study("format-cost", ["rounds=2", "rows=32", "columns=256", "formats=[int4-g64, q6_k, nf4-b64]"])
    study.measure(tmp_path)
    rows = read_json_lines(tmp_path / "rows.jsonl")
    assert [row["format"] for row in rows] == ["int4-g64", "q6_k"]
    for row in rows:
        assert len(row["ratios"]) == 2
        assert row["ratios"] == sorted(row["ratios"])
        assert min(row["ratios"]) > 0
    assert os.environ[VARIABLE] == "numpy"
    assert "| q6_k | whole |" in cost_table(rows)


def test_every_format_is_one_of_an_audit() -> None:
    for name in FORMATS:
        check_name(name)
    assert len(set(FORMATS)) == len(FORMATS)


def test_the_slow_ones_are_named() -> None:
    common = {"path": "avx2", "processor": "p", "shape": [2, 4, 256], "dtype": "bfloat16", "over": "nf4-b64"}
    rows = [
        {**common, "format": "quick", "ways": {"quick": {"vectors": 2}}, "ratios": [0.9, 1.0, 90.0]},
        {**common, "format": "slow", "ways": {"q4_k": {"searched": 2}}, "ratios": [9.0, SLOW + 1.0, 12.0]},
    ]
    text = cost_table(rows)
    assert f"More than {SLOW} times as long: slow." in text
    assert text.index("| quick |") < text.index("| slow |")
