"""The published table of the laws is what its rows say, and so is the text beside it."""

from __future__ import annotations

from pathlib import Path

from unforgotten.records.files import read_json_lines
from unforgotten.reports.flip_laws import ROWS_FILE, law_table

LAWS = Path(__file__).parents[2] / "reports" / "published" / "laws"


def test_the_table_is_rendered_from_the_rows() -> None:
    assert (LAWS / "table.md").read_text() == law_table(read_json_lines(LAWS / ROWS_FILE))


def test_the_text_states_the_numbers_of_the_rows() -> None:
    rows = read_json_lines(LAWS / ROWS_FILE)
    fixed, adaptive = ([r for r in rows if r["grid"] == g] for g in ("fixed", "adaptive"))
    share = max(r["gap"] / r["allowed"] for r in rows)
    errors = max(r["gap"] / r["stderr"] for r in fixed)
    seen = max(r["gap"] for r in adaptive if r["quantity"] == "gain" and r["format"] == "int8-row")
    text = (LAWS / "README.md").read_text()
    assert all(r["gap"] <= r["allowed"] for r in rows)
    assert f"All {len(rows)} are inside; the largest share is {share:.2f}." in text
    assert f"above\n{errors:.1f} standard errors, as chance alone would have it in {len(fixed)}." in text
    assert f"{seen:.4f} in the gain of int8-row" in text
