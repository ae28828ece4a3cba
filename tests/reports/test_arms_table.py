"""A seed with the arms of today beside the same seed as it was: the table is what the rows say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unforgotten.records.rows import read_run
from unforgotten.reports.run.arms import HEADS, arms_table

PUBLISHED = Path(__file__).parents[2] / "reports/published"
NEW, OLD = PUBLISHED / "tiny-arms-seed0", PUBLISHED / "tiny-seed0"


def test_table_is_rendered_from_its_rows() -> None:
    assert (NEW / "table.md").read_text() == arms_table(read_run(NEW), read_run(OLD))


def test_an_arm_that_the_old_run_lacks_has_dashes() -> None:
    new = read_run(NEW)
    lines = [line.split(" | ") for line in arms_table(new, read_run(OLD)).splitlines()]
    rows = [cells for cells in lines if len(cells) == len(HEADS)]
    assert len(rows) == 2 + len(new.methods) * len(new.storages) * len(new.formats)
    lacking = [all(" / –" in cell for cell in cells[3:]) for cells in rows[2:]]
    assert lacking == [cells[1] == "bf16-sr" for cells in rows[2:]]


def test_a_gain_of_the_rows_stands_in_the_table() -> None:
    """Another gain makes another table, in its own line alone."""
    new, old = read_run(NEW), read_run(OLD)
    row = new.get("gain", "unlearned", "GA", "bf16", "int4-row")
    assert row is not None
    changed = replace(new, rows=tuple(replace(r, value=0.125) if r is row else r for r in new.rows))
    one, other = (arms_table(run, old).splitlines() for run in (new, changed))
    differ = [b for a, b in zip(one, other, strict=True) if a != b]
    assert len(differ) == 1
    assert "| GA | bf16 | int4-row |" in differ[0]
    assert "| 0.125 / " in differ[0]
