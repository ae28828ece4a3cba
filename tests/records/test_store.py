"""What a run writes is what the contract says, to the byte: the published rows, written again."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from unforgotten.records.packed_rows import rows_content
from unforgotten.records.rows import MAY_BE_ABSENT, Row, Subject, field_rules, read_rows
from unforgotten.records.store import Measurement, RowStore

PUBLISHED = Path(__file__).parents[2] / "reports/published"
TODAY = PUBLISHED / "tiny-arms-seed0"
COMMON = ("profile", "seed", "config", "revision", "corpus", "device", "processor")
NAMES = [field.name for field in fields(Row)]
ROWS = 400
LATER = dict.fromkeys(("calibration", "updated_share", "mask_threshold", "rouge", "evaluation_dtype", "depth"))
"""Fields that came after these rows were published."""


def test_published_rows_written_again_are_the_same_bytes(tmp_path: Path) -> None:
    lines = (TODAY / "rows.jsonl").read_text().splitlines()
    some = [json.loads(line) for line in (*lines[:ROWS], *(line for line in lines if '"rho_M1"' in line))]
    store = RowStore(tmp_path, {name: some[0][name] for name in COMMON})
    for i, row in enumerate(some):
        store.append(row["stage"], subject_of(row), [measurement_of(row)], items_of="model" if i % 2 else "pair")
    written = (tmp_path / "rows.jsonl").read_text().splitlines()
    for one, row in zip(written, some, strict=True):
        given = json.loads(one)
        assert all(given.pop(name) is value for name, value in LATER.items())
        assert json.dumps(given) == json.dumps(row | {"items": given["items"]}, allow_nan=False)


def test_published_rows_hold_every_field_in_its_place() -> None:
    for line in (TODAY / "rows.jsonl").read_text().splitlines():
        assert list(json.loads(line)) == [name for name in NAMES if name not in LATER]


@pytest.mark.parametrize("folder", sorted(PUBLISHED.glob("*/config.json")), ids=lambda path: path.parent.name)
def test_older_rows_lack_only_what_may_be_absent(folder: Path) -> None:
    for line in rows_content(folder.parent).splitlines()[:ROWS]:
        given = list(json.loads(line))
        assert given == [name for name in NAMES if name in given]
        assert set(NAMES) - set(given) <= MAY_BE_ABSENT


def test_what_is_read_is_what_was_written() -> None:
    for line, row in zip((TODAY / "rows.jsonl").read_text().splitlines(), read_rows(TODAY), strict=True):
        given, read = json.loads(line), json.loads(json.dumps(asdict(row)))
        if given["interval"] is not None and None in given["interval"]:
            read["interval"] = given["interval"]  # an end is open
        assert read == given | LATER


def test_every_field_has_a_rule_and_those_that_may_be_absent_are_fields() -> None:
    assert list(field_rules()) == NAMES
    assert set(NAMES) >= MAY_BE_ABSENT
    assert field_rules()["value"] == ((int, float), True)
    assert field_rules()["seed"] == ((int,), False)
    assert field_rules()["dtypes"] == ((dict,), False)
    assert field_rules()["interval"] == ((list,), True)


def subject_of(row: dict[str, Any]) -> Subject:
    given: dict[str, Any] = LATER | row
    return Subject(**{field.name: given[field.name] for field in fields(Subject)})


def measurement_of(row: dict[str, Any]) -> Measurement:
    value, stderr, interval = (row[name] for name in ("value", "stderr", "interval"))
    ends = None if interval is None else (number(interval[0]), number(interval[1]))
    return Measurement(row["metric"], number(value), stderr, row["n"], (1.0,) if row["items"] else None, ends)


def number(value: float | None) -> float:
    return math.nan if value is None else value
