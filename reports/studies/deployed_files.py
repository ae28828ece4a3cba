"""What other people's quantizers leave of updates: `table.md` from the rows of `experiments/studies/deployed_files.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unforgotten.records.files import read_json_lines
from unforgotten.records.packed_rows import ROWS_FILE

COLUMNS = (
    *("run", "method", "storage", "written by", "stored as", "read otherwise"),
    *("gain", "cosine", "ours of that name", "gain", "cosine"),
)


def render(folder: Path) -> Mapping[str, str]:
    """Return the files made of the study's rows: `table.md`."""
    lines = [f"| {' | '.join(COLUMNS)} |", "| --- |" + " --- |" * (len(COLUMNS) - 1)]
    lines += [f"| {' | '.join(_cells(row))} |" for row in read_json_lines(folder / ROWS_FILE)]
    return {"table.md": "\n".join(lines) + "\n"}


def _cells(row: Mapping[str, Any]) -> list[str]:
    types = ", ".join(f"{kind['type']} {kind['tensors']}" for kind in row["types"])
    return [
        *(row["run"], row["method"], row["storage"], f"{row['written_by']} ({row['tool']})", types),
        f"{row['unequal']} of {2 * row['weights']}",
        *(_number(row[key]) for key in ("gain", "cosine")),
        row["ours"],
        *(_number(row[key]) for key in ("ours_gain", "ours_cosine")),
    ]


def _number(x: float | None) -> str:
    return "–" if x is None else f"{x:.2f}"
