"""Functional gains beside random updates: `table.md` from the rows of `experiments/studies/sham.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unforgotten.records.files import read_json_lines
from unforgotten.records.packed_rows import ROWS_FILE

COLUMNS = (
    *("run", "method", "storage", "format", "gain", "gain of random updates", "functional gain"),
    *("moved by rounding of random updates", "further from 1 than that", "came back by gating", "in all"),
)


def render(folder: Path) -> Mapping[str, str]:
    """Return the files made of the study's rows: `table.md`."""
    rows = read_json_lines(folder / ROWS_FILE)
    lines = [f"| {' | '.join(COLUMNS)} |", "| --- |" + " --- |" * (len(COLUMNS) - 1)]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    return {"table.md": "\n".join([told(rows), "", *lines]) + "\n"}


def told(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return how many functional gains are further from 1 than random updates, and what came back of these."""
    beyond = [row for row in rows if is_beyond(row)]
    right = sum((1 - row["functional_gain"]) * row["first_order"] * row["came_back_gating"] > 0 for row in beyond)
    return (
        f"{len(beyond)} of {len(rows)} functional gains are further from 1 than rounding moves that of a random update; in "
        f"{right} of them the sign of what came back by gating is the one they say."
    )


def is_beyond(row: Mapping[str, Any]) -> bool:
    """Return whether a functional gain is further from 1 than that of any random update was moved."""
    return bool(abs(1 - row["functional_gain"]) > row["sham_shift"])


def _cells(row: Mapping[str, Any]) -> list[str]:
    raised = row["loss"] - row["target_loss"]
    return [
        *(row["run"], row["method"], row["storage"], row["format"]),
        *(f"{row[key]:.2f}" for key in ("gain", "sham_gain", "functional_gain", "sham_shift")),
        "yes" if is_beyond(row) else "no",
        f"{row['came_back_gating'] / raised:.0%}",
        f"{row['came_back'] / raised:.0%}",
    ]
