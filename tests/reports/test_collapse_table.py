"""The tables of `collapse` are made of its rows, and say nothing where there is nothing to order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unforgotten.reports.studies.collapse import equal_codes_table, in_range, rank, render
from unforgotten.reports.verdicts.collapsed import collapse_sentences
from unforgotten.reports.verdicts.evidence import Evidence

FLOAT64 = 2.0**-40
"""Of a correlation of three ranks in float64."""


def cell(equal: float, back: float, storage: str = "bf16", method: str = "NPO", gain: float = 0.5) -> dict[str, Any]:
    names = {"kind": "cell", "run": "x", "storage": storage, "method": method, "format": "int4-g64"}
    return {**names, "equal": equal, "came_back": back, "gain": gain}


def functional(gain: float, known: float, back: float, storage: str, method: str) -> dict[str, Any]:
    return {**cell(0.9, back, storage, method, gain), "kind": "functional", "functional_gain": known}


def test_a_line_is_of_one_group_and_one_range() -> None:
    rows = [cell(0.95, 0.5), cell(0.98, 0.1), cell(0.95, 0.0, "fp32"), cell(0.95, -0.2, method="GA"), cell(1.0, 1.0)]
    lines = equal_codes_table(rows).splitlines()[2:]
    assert [line.split(" | ")[1:4] for line in lines] == [
        ["90 to 99", "1", "0.50"],
        ["90 to 99", "1", "0.50"],
        ["90 to 99", "2", "0.50"],
        ["99.9 to 100", "1", "0.50"],
    ]
    assert lines[2].endswith("| 30 (10 to 50) | 1 |")
    assert lines[0].endswith("| 0 | 0 |")


def test_ranges_meet_without_overlap() -> None:
    assert [in_range(0.9, *ends) for ends in ((0.5, 0.9), (0.9, 0.99))] == [False, True]
    assert in_range(1.0, 0.999, 1.0)


def test_a_rank_is_one_where_what_is_said_orders_the_cells() -> None:
    rising = [cell(0.1, 0.2), cell(0.5, 0.3), cell(0.9, 0.9)]
    assert rank(rising, "equal codes") == pytest.approx(1.0, rel=FLOAT64)
    assert rank(rising[::-1], "equal codes") == pytest.approx(1.0, rel=FLOAT64)
    assert rank([cell(0.9, 0.2), cell(0.5, 0.3), cell(0.1, 0.9)], "equal codes") == pytest.approx(-1.0, rel=FLOAT64)
    assert rank(rising, "gain of the weights") is None  # all alike
    assert rank(rising[:2], "equal codes") is None


def test_the_page_counts_cells_with_equal_codes(tmp_path: Path) -> None:
    arms = (("fp32", "NPO"), ("bf16", "GA"), ("bf16", "NPO"))
    known = [functional(g, 1 - b, b, *arm) for arm in arms for g, b in ((0.2, 0.1), (0.3, 0.4), (0.1, 0.9))]
    stored = cell(0.999, 0.9, "fp32") | {"stored_in": "int4-g64"}
    cells = [cell(0.991, 0.5), cell(0.995, 0.3), cell(0.992, 0.0, "fp32"), cell(0.98, 0.9, "fp32"), stored]
    others = [cell(0.5 + 0.1 * i, 0.01 * i, *arm) for arm in arms for i in range(3)]
    folder = tmp_path / "collapse"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*cells, *others, *known]))
    counted, ordered = collapse_sentences(Evidence(tmp_path))
    assert counted.endswith(
        "masters or bf16 rounded at random, 0 of 1 cells; fp32 masters, target stored in 4 bits before, 1 of 1 cells; "
        "bf16, NPO and others, 1 of 2 cells."
    )
    assert ordered.endswith("the gain of the weights 0.50, 0.50, 0.50; the functional gain 1.00, 1.00, 1.00.")
    assert "14 cells" in render(folder)["table.md"]


def test_without_rows_the_page_says_nothing(tmp_path: Path) -> None:
    assert list(collapse_sentences(Evidence(tmp_path))) == []
