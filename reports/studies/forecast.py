"""Forecast beside measured gain: `table.md` from the rows that `experiments/studies/forecast.py` wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unforgotten.records.files import read_json_lines
from unforgotten.records.rows import ROWS_FILE

Row = dict[str, Any]
COLUMNS = ("method", "storage", "seed", "format", "measured", "forecast", "of the blocks", "error", "functional gain")


def render(folder: Path) -> Mapping[str, str]:
    """Return the files made of the study's rows: `table.md`."""
    rows = read_json_lines(folder / ROWS_FILE)
    return {"table.md": f"{summary_table(rows)}\n\n{cells_table(rows)}\n"}


def errors(rows: Sequence[Row]) -> list[float]:
    """Return forecast less measured gain of each row."""
    return [row["predicted"] - row["measured"] for row in rows]


def summary_table(rows: Sequence[Row]) -> str:
    """Return a line for each method, and for those looked at or not: how far forecasts are from what was measured.

    A method was looked at if its errors were known when the replay was designed.
    """
    lines = [
        "| method | cells | median of the error's size | 90 % below | largest | mean error |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    groups = {name: [row for row in rows if row["method"] == name] for name in dict.fromkeys(r["method"] for r in rows)}
    groups |= {
        "all that were looked at": [row for row in rows if row["looked_at"]],
        "all that were not": [row for row in rows if not row["looked_at"]],
    }
    for name, group in groups.items():
        if not group:
            continue
        found = np.array(errors(group))
        sizes = np.abs(found)
        numbers = (np.median(sizes), np.quantile(sizes, 0.9), sizes.max(), found.mean())
        lines.append(f"| {name} | {len(group)} | {' | '.join(f'{number:.3f}' for number in numbers)} |")
    return "\n".join(lines)


def cells_table(rows: Sequence[Row]) -> str:
    """Return a line for each row."""
    lines = [f"| {' | '.join(COLUMNS)} |", "| --- |" + " --- |" * (len(COLUMNS) - 1)]
    for row, error in zip(rows, errors(rows), strict=True):
        low, high = row["range"]
        cells = [row["method"], row["storage"], str(row["seed"]), row["format"], f"{row['measured']:.2f}"]
        cells += [
            f"{row['predicted']:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{error:+.2f}",
            f"{row['functional_gain']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
