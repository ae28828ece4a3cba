"""What each format costs an audit over nf4-b64, as Markdown: from the rows that `experiments/studies/format_cost.py` wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from unforgotten.records.files import read_json_lines
from unforgotten.reports.labels import spread

SLOW = 10
"""Times nf4-b64, from which on a format is called slow."""


def render(folder: Path) -> Mapping[str, str]:
    """Return the files made of the study's rows: `table.md`."""
    return {"table.md": cost_table(read_json_lines(folder / "rows.jsonl"))}


def cost_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a line a format, the quickest first, and which take more than SLOW times as long."""
    first = rows[0]
    count, height, width = first["shape"]
    slow = [row["format"] for row in rows if median(row["ratios"]) > SLOW]
    lines = [
        f"The weights leg of {count} x {height} x {width} {first['dtype']} weights in one format, over that in",
        f"{first['over']}, by the path {first['path']} on {first['processor']}.",
        f"Ratios of times of one round: median (lowest to highest) of {len(first['ratios'])} rounds.",
        "",
        f"More than {SLOW} times as long: {', '.join(slow) or 'none'}.",
        "",
        "| format | way | ratio |",
        "| --- | --- | ---: |",
    ]
    for row in sorted(rows, key=lambda row: median(row["ratios"])):
        ways = sorted({way for own in row["ways"].values() for way in own})
        lines.append(f"| {row['format']} | {', '.join(ways)} | {spread(row['ratios'])} |")
    return "\n".join(lines) + "\n"
