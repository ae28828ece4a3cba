"""The tables, sentences and figure of `phase-diagram` are made of its rows, and its rule can fail."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unforgotten.reports.studies.phase_diagram import EDGES, RULES, holds, inside, rank, ratio_table, render, rule_table
from unforgotten.reports.verdicts.evidence import Evidence
from unforgotten.reports.verdicts.phase_figure import drawn, phase_figure
from unforgotten.reports.verdicts.phased import assumed_ratios, phase_sentences


def cell(
    ratio: float, gain: float, looked_at: bool = True, method: str = "NPO_GDR", storage: str = "bf16"
) -> dict[str, Any]:
    names = {
        "kind": "cell",
        "run": f"x{looked_at}",
        "method": method,
        "storage": storage,
        "format": "int4-g64",
        "lr": 1e-5,
    }
    return {**names, "ratio": ratio, "gain": gain, "came_back": 1 - gain, "looked_at": looked_at}


ROWS = [
    cell(0.3, 0.0),
    cell(0.7, 0.3),
    cell(0.9, 0.8),
    cell(3.0, 1.0),
    cell(0.7, 0.5, method="GA"),
    cell(2e4, 1.0, storage="fp32"),
]
ROWS += [cell(0.2, 0.1, looked_at=False), cell(1.5, 0.5, looked_at=False)]
ASSUMED = [{"kind": "assumed", "format": "fp4-b64", "lr": 1e-5, "ratio": 0.89}]


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    place = folder / "phase-diagram"
    place.mkdir()
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def test_the_ranges_hold_every_ratio_once() -> None:
    assert EDGES[0] == 0
    assert EDGES[-1] == math.inf
    assert list(EDGES) == sorted(EDGES)
    assert [rule.high for rule in RULES[:-1]] == [rule.low for rule in RULES[1:]]
    for ratio in (0.0, 0.5, 1.0, 2.5, 1e9):
        assert sum(bool(inside([cell(ratio, 1.0)], rule)) for rule in RULES) == 1


def test_a_line_is_of_one_range_and_one_group() -> None:
    lines = ratio_table(ROWS).splitlines()[2:]
    assert [line.split(" | ")[:3] for line in lines] == [
        ["| 0 to 0.4", "bf16, NPO and others", "2"],
        ["| 0.6 to 0.8", "bf16, GA", "1"],
        ["| 0.6 to 0.8", "bf16, NPO and others", "1"],
        ["| 0.8 to 1", "bf16, NPO and others", "1"],
        ["| 1.3 to 2.5", "bf16, NPO and others", "1"],
        ["| 2.5 and more", "bf16, NPO and others", "1"],
        ["| 2.5 and more", "fp32 masters", "1"],
    ]
    assert lines[0].endswith("| 0.05 (0.00 to 0.10) | 95 (90 to 100) |")


def test_the_rule_can_fail_on_either_side_of_the_look() -> None:
    lines = rule_table(ROWS).splitlines()[2:]
    assert [line.split(" | ")[2:4] for line in lines] == [
        ["1 of 1", "1 of 1"],
        ["2 of 3", "0 of 0"],
        ["0 of 0", "0 of 1"],
        ["2 of 2", "0 of 0"],
    ]
    assert not holds(cell(0.9, 0.8), RULES[1])


def test_the_correlation_is_over_bf16_and_needs_three_cells() -> None:
    assert math.isnan(rank(ROWS[:2]))
    assert rank([cell(0.1, 0.0), cell(0.5, 0.2), cell(2.0, 1.2)]) == 1.0
    assert rank([cell(0.1, 1.0), cell(0.5, 0.2), cell(2.0, 0.0)]) == -1.0


def test_sentences_count_what_was_not_looked_at(tmp_path: Path) -> None:
    write(tmp_path, [*ROWS, *ASSUMED])
    first, second = phase_sentences(Evidence(tmp_path))
    assert "Over 7 cells of 2 runs" in first
    assert "0 to 0.5: 0.05 (0.00 to 0.10), 2 cells" in first
    told = "before the rows of 1 of these runs were read: 1 of their 2 cells are inside; outside: "
    assert f"{told}xFalse int4-g64 at 1.50: 0.50." in second
    assert assumed_ratios(Evidence(tmp_path)) == {("fp4-b64", 1e-5): 0.89}
    assert "| 1e-05 | fp4-b64 | 0.89 | 0 to 0.7 |" in render(tmp_path / "phase-diagram")["table.md"]
    (tmp_path / "none").mkdir()
    assert list(phase_sentences(Evidence(tmp_path / "none"))) == []


def test_the_figure_has_every_cell_and_needs_one(tmp_path: Path) -> None:
    (ax,) = phase_figure(ROWS).axes
    marks = [np.asarray(line.get_xdata()) for line in ax.lines if line.get_linestyle() == "None"]
    assert sum(x.size for x in marks) == len(ROWS)
    place = write(tmp_path, ROWS)
    assert drawn(place, "svg").startswith(b"<?xml")
    assert drawn(place, "png").startswith(b"\x89PNG")
    (place / "rows.jsonl").write_text(json.dumps(ASSUMED[0]) + "\n")
    with pytest.raises(ValueError, match="must hold cells"):
        drawn(place, "svg")
