"""Signs of what came back beside those that two gains say: `table.md` from the rows of `experiments/studies/functional_gain.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unforgotten.records.files import read_json_lines
from unforgotten.records.packed_rows import ROWS_FILE

Row = dict[str, Any]
SAID: Mapping[str, Callable[[Row], float]] = {
    "functional gain": lambda row: (1 - row["functional_gain"]) * row["first_order"],
    "gain of the weights": lambda row: 1 - row["gain"],
}
"""What each says of the sign of what comes back."""

CAME_BACK: Mapping[str, str] = {"came_back_gating": "by gating", "came_back": "in all"}

COLUMNS = (
    *("method", "storage", "seed", "format", "gain", "functional gain", "second order"),
    *("came back by gating", "in all"),
)


def render(folder: Path) -> Mapping[str, str]:
    """Return the files made of the study's rows: `table.md`."""
    rows = read_json_lines(folder / ROWS_FILE)
    return {"table.md": f"{hits_table(rows)}\n\n{cells_table(rows)}\n"}


def hits(rows: Sequence[Row], said: str, came_back: str) -> int:
    """Count the rows in which the sign of what came back is the one that was said."""
    return sum(SAID[said](row) * row[came_back] > 0 for row in rows)


def hits_table(rows: Sequence[Row]) -> str:
    """Return a line for each of the two gains: of how many rows each has the sign of what came back."""
    lines = [f"| sign by | {' | '.join(f'came back {how}' for how in CAME_BACK.values())} |", "| --- |" + " --- |" * 2]
    for said in SAID:
        counts = (f"{hits(rows, said, name)} of {len(rows)}" for name in CAME_BACK)
        lines.append(f"| {said} | {' | '.join(counts)} |")
    return "\n".join(lines)


def cells_table(rows: Sequence[Row]) -> str:
    """Return a line for each row: both gains, and what came back of the forget loss as a share of what unlearning added."""
    lines = [f"| {' | '.join(COLUMNS)} |", "| --- |" + " --- |" * (len(COLUMNS) - 1)]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    raised = row["loss"] - row["target_loss"]
    second = row["second_order_share"]
    return [
        row["method"],
        row["storage"],
        str(row["seed"]),
        row["format"],
        f"{row['gain']:.2f}",
        f"{row['functional_gain']:.2f}",
        "–" if second is None else f"{1 - second:.2f}",
        f"{row['came_back_gating'] / raised:.0%}",
        f"{row['came_back'] / raised:.0%}",
    ]
