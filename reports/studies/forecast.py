"""Forecast beside measured gain: `table.md` from the rows that `experiments/studies/forecast.py` wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unforgotten.records.files import read_json_lines
from unforgotten.records.packed_rows import ROWS_FILE

Row = dict[str, Any]
DIRECTIONS_FILE = "directions.jsonl"
COLUMNS = ("method", "storage", "seed", "format", "measured", "forecast", "of the blocks", "error", "functional gain")


def render(folder: Path) -> Mapping[str, str]:
    """Return the files made of the study's rows: `table.md`."""
    rows = read_json_lines(folder / ROWS_FILE)
    turned = read_json_lines(folder / DIRECTIONS_FILE)
    return {"table.md": f"{summary_table(rows)}\n\n{directions_table(turned)}\n\n{cells_table(rows)}\n"}


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


def directions_table(rows: Sequence[Row]) -> str:
    """Return a line for each method: how far the gradients of its pilots turn, and how much they grow.

    Cosine of the mean gradients of the first and the last tenth of the steps; of the halves of one tenth; and the norm in the
    last tenth over that in the first, after clipping. Least to largest over the seeds.
    """
    lines = [
        "| method | seeds | steps | cosine of first and last tenth | of both halves of a tenth | norm, last over first |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(row["method"] for row in rows):
        group = [row for row in rows if row["method"] == name]
        steps = sorted(row["steps"] for row in group)
        cells = [name, str(len(group)), f"{steps[0]} to {steps[-1]}", turn(group), turn_within(group), growth(group)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def turn(rows: Sequence[Row]) -> str:
    """Return the range of the cosine of the first and the last tenth."""
    return _span([row["cosine"] for row in rows])


def turn_within(rows: Sequence[Row]) -> str:
    """Return the range of the cosine of both halves of a tenth."""
    return _span([row[key] for row in rows for key in ("within_first", "within_last")])


def growth(rows: Sequence[Row]) -> str:
    """Return the range of the norm of the last tenth over that of the first."""
    return _span([row["norm_last"] / row["norm_first"] if row["norm_first"] else None for row in rows])


def _span(values: Sequence[float | None]) -> str:
    known = sorted(value for value in values if value is not None)
    return f"{known[0]:.2f} to {known[-1]:.2f}" if known else "none"


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
