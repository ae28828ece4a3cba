"""Reading rows: what is accepted, and one line about what is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unforgotten.reports import read_rows, read_run, select

GOOD: dict[str, Any] = {
    "model": "unlearned",
    "method": "GA",
    "storage": "fp32",
    "lr": 1e-5,
    "seed": 3,
    "format": "none",
    "metric": "M1",
    "value": 12.5,
    "stderr": 2.0,
    "n": 24,
    "items": None,
    "config": "abc",
    "revision": "r",
    "dtypes": {"parameters": "float32"},
    "device": "cpu",
}


def write(folder: Path, *lines: str) -> Path:
    (folder / "rows.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


def row(**changes: object) -> str:
    return json.dumps(GOOD | changes)


def without(name: str) -> str:
    return json.dumps({k: v for k, v in GOOD.items() if k != name})


def test_a_row_is_read_with_its_interval(tmp_path: Path) -> None:
    (read,) = read_rows(write(tmp_path, row()))
    assert (read.metric, read.value, read.method, read.n) == ("M1", 12.5, "GA", 24)
    assert read.bounds == (12.5 - 1.96 * 2.0, 12.5 + 1.96 * 2.0)


def test_the_interval_of_a_row_comes_before_its_standard_error(tmp_path: Path) -> None:
    (read,) = read_rows(write(tmp_path, row(interval=[1.0, 2.0])))
    assert read.bounds == (1.0, 2.0)


def test_an_undefined_row_has_no_interval(tmp_path: Path) -> None:
    (read,) = read_rows(write(tmp_path, row(metric="rho_M1", value=None, stderr=None, interval=[None, None])))
    assert read.value is None
    assert read.bounds is None


def test_fields_that_a_later_version_adds_are_ignored(tmp_path: Path) -> None:
    assert len(read_rows(write(tmp_path, row(added="later"), ""))) == 1


def test_rows_are_selected_by_value_and_by_any_of_several(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path, row(), row(metric="M2"), row(metric="M4", format="int4-g64")))
    assert [r.metric for r in select(rows, format="none")] == ["M1", "M2"]
    assert [r.metric for r in select(rows, metric=("M2", "M4"), format="int4-g64")] == ["M4"]


def test_a_run_knows_its_axes_and_checksum(tmp_path: Path) -> None:
    run = read_run(write(tmp_path, row(), row(storage="bf16", format="int4-g64")))
    assert (run.methods, run.storages, run.formats) == (("GA",), ("fp32", "bf16"), ("int4-g64",))
    assert run.value("M1", "unlearned", "GA", "bf16", "int4-g64") == 12.5
    assert run.value("M1", "target") is None
    assert len(run.sha256) == 64
    assert run.settings is None


BROKEN = {
    "broken JSON": ([row()[:-9]], "line 1: a row must be one JSON object"),
    "second line": ([row(), "[1]"], "line 2: a row must be one JSON object, got list"),
    "missing field": ([without("format")], "line 1: a row must have the field 'format'"),
    "text for a number": ([row(value="12")], "line 1: value must be int or float or null, got value='12'"),
    "truth for a number": ([row(value=True)], "value must be int or float or null, got value=True"),
    "not a number": ([row().replace("12.5", "NaN")], "line 1: value must be finite or null, got value=nan"),
    "null where a name belongs": ([row(metric=None)], "metric must be str, got metric=None"),
    "half an interval": ([row(interval=[1.0])], "interval must hold two numbers, got interval=[1.0]"),
    "no rows": ([""], "must hold at least one row, got none"),
    "two runs": ([row(), row(metric="M2", seed=4)], "must hold the rows of one run"),
    "twice the same": ([row(), row()], "must hold each measurement once"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rows_give_one_line_that_names_file_and_rule(name: str, tmp_path: Path) -> None:
    lines, message = BROKEN[name]
    with pytest.raises(ValueError, match=r"rows\.jsonl") as caught:
        read_rows(write(tmp_path, *lines))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_give_one_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"model": "\xff"}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl: line 1: a row must be one JSON object"):
        read_rows(tmp_path)


def test_a_missing_folder_and_a_folder_without_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gone: must be the directory of a run"):
        read_rows(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"rows\.jsonl: must exist"):
        read_rows(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_configuration_is_named(content: str, tmp_path: Path) -> None:
    write(tmp_path, row())
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json: must be a JSON object"):
        read_run(tmp_path)


@pytest.mark.parametrize(("target", "defined"), [(28.0, False), (60.0, False), (90.0, True)])
def test_nothing_is_recovered_where_the_quantized_target_knows_no_more(
    tmp_path: Path, target: float, defined: bool
) -> None:
    rho = row(metric="rho_M1", format="int4-g64", value=0.95, stderr=0.02, interval=[0.9, 1.0])
    known = row(model="target", method=None, storage=None, format="int4-g64", value=target)
    run = read_run(write(tmp_path, row(value=60.0), known, rho))
    got = run.get("rho_M1", "unlearned", "GA", "fp32", "int4-g64")
    assert got is not None
    assert (got.value, got.bounds) == ((0.95, (0.9, 1.0)) if defined else (None, None))


@pytest.mark.parametrize(("target", "defined"), [(0.4, True), (0.6, False), (0.9, False)])
def test_a_loss_comes_back_where_the_quantized_target_has_the_lower_one(
    tmp_path: Path, target: float, defined: bool
) -> None:
    rho = row(metric="rho_forget_loss", format="int4-g64", value=0.95, stderr=0.02, interval=[0.9, 1.0])
    after = row(metric="forget_loss", value=0.6)
    known = row(model="target", metric="forget_loss", method=None, storage=None, format="int4-g64", value=target)
    run = read_run(write(tmp_path, after, known, rho))
    got = run.get("rho_forget_loss", "unlearned", "GA", "fp32", "int4-g64")
    assert got is not None
    assert (got.value, got.bounds) == ((0.95, (0.9, 1.0)) if defined else (None, None))
