"""Predicted beside measured gain: `table.md` from the rows that `experiments/studies/gain_predictions.py` wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unforgotten.records.files import read_json_lines
from unforgotten.records.methods import forget_term
from unforgotten.records.packed_rows import ROWS_FILE


def render(folder: Path) -> Mapping[str, str]:
    """Return the files made of the study's rows: `table.md`."""
    return {"table.md": prediction_table(read_json_lines(folder / ROWS_FILE)) + "\n"}


def prediction_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a line for each arm and format: the range of the measured gain and of each prediction, its largest error."""
    kinds = tuple(dict.fromkeys(r["kind"] for r in rows))
    lines = [f"| arm | format | measured | {' | '.join(kinds)} |", "| --- | --- | --- |" + " --- |" * len(kinds)]
    for storage, name in dict.fromkeys((r["storage"], r["format"]) for r in rows):
        cell = [r for r in rows if (r["storage"], r["format"]) == (storage, name)]
        predicted = " | ".join(_predicted([r for r in cell if r["kind"] == k]) for k in kinds)
        lines.append(f"| {storage} | {name} | {_span(r['measured'] for r in cell)} | {predicted} |")
    return "\n".join(lines)


def moved_beyond(rows: Sequence[dict[str, Any]], term: str) -> str:
    """Return the range, over bf16 models of a forget term, of the percentage that moved in the first frozen binade."""
    shares = sorted(r["beyond"] for r in rows if r["storage"] == "bf16" and forget_term(r["method"]) == term)
    return f"{shares[0]:.0%} to {shares[-1]:.0%}"


def _predicted(rows: Sequence[dict[str, Any]]) -> str:
    error = max(abs(r["predicted"] - r["measured"]) for r in rows)
    return f"{_span(r['predicted'] for r in rows)}, off by {error:.2f}"


def _span(values: Iterable[float]) -> str:
    ordered = sorted(values)
    return f"{ordered[0]:.2f} to {ordered[-1]:.2f}"
