"""Equal codes beside what came back: `table.md` from the rows that `experiments/studies/collapse.py` wrote."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from unforgotten.audit.verdict.evidence import MATERIAL
from unforgotten.records.files import read_json_lines
from unforgotten.records.methods import forget_term
from unforgotten.records.packed_rows import ROWS_FILE
from unforgotten.reports.markdown import line, spread
from unforgotten.reports.run.conjectures import LEAST_EFFECT

Row = Mapping[str, Any]
EDGES = (0.0, 0.5, 0.9, 0.99, 0.999, 1.0)
"""Ends of the ranges of the share of equal codes; the last holds its upper end."""
GROUPS: Mapping[str, Callable[[Row], bool]] = {
    "fp32 masters or bf16 rounded at random": lambda row: row["storage"] != "bf16" and "stored_in" not in row,
    "fp32 masters, target stored in 4 bits before": lambda row: row["storage"] != "bf16" and "stored_in" in row,
    "bf16, GA": lambda row: row["storage"] == "bf16" and forget_term(row["method"]) == "GA",
    "bf16, NPO and others": lambda row: row["storage"] == "bf16" and forget_term(row["method"]) != "GA",
}
SAID: Mapping[str, Callable[[Row], float]] = {
    "equal codes": lambda row: float(row["equal"]),
    "gain of the weights": lambda row: 1 - row["gain"],
    "functional gain": lambda row: 1 - row["functional_gain"],
}
"""What each says of how much comes back: more, the larger it is."""


def render(folder: Path) -> Mapping[str, str]:
    """Return the files made of the study's rows: `table.md`."""
    rows = read_json_lines(folder / ROWS_FILE)
    cells = [row for row in rows if row["kind"] == "cell"]
    intro = (
        f"{len(cells)} cells, an unlearned model in a format each, of {len({row['run'] for row in cells})} published runs; median, lowest and "
        f"highest. *Came back*: what the "
        f"cells of the format take back of what unlearning added to the forget loss; below 0 more is forgotten than before. Models whose "
        f"forget loss rose by less than {LEAST_EFFECT} are left out."
    )
    return {"table.md": f"{intro}\n\n{equal_codes_table(cells)}\n\n{ranks_intro()}\n\n{ranks_table(rows)}\n"}


def equal_codes_table(cells: Sequence[Row]) -> str:
    """Return a line for each group and range of the share of equal codes: gains and what came back."""
    heads = ("parameters", "codes equal, %", "cells", "gain", "came back, %", "a third or more back")
    lines = [line(heads), line(["---"] * len(heads))]
    for group, inside in GROUPS.items():
        for low, high in itertools.pairwise(EDGES):
            found = [row for row in cells if inside(row) and in_range(row["equal"], low, high)]
            if found:
                back = [row["came_back"] for row in found]
                many = sum(value >= MATERIAL for value in back)
                span = f"{100 * low:.4g} to {100 * high:.4g}"
                gains = spread([row["gain"] for row in found], 2)
                percents = spread([100 * value for value in back], 0)
                lines.append(line((group, span, str(len(found)), gains, percents, str(many))))
    return "\n".join(lines)


def in_range(value: float, low: float, high: float) -> bool:
    """Tell whether a share lies in a range without its upper end, but for the last one."""
    return low <= value < high or (high == EDGES[-1] and value == high)


def ranks_intro() -> str:
    """Return what the second table shows."""
    return (
        "Spearman's rank correlation of what came back with what would foretell it; -1 to 1. The functional gain is known of the cells "
        "of `functional-gain` alone, and there the gain of the weights stands beside it."
    )


def ranks_table(rows: Sequence[Row]) -> str:
    """Return a line for each group: how well each quantity orders cells by what came back."""
    heads = ("parameters", "cells", *list(SAID)[:2], "cells of functional-gain", *list(SAID)[1:])
    lines = [line(heads), line(["---"] * len(heads))]
    for group, inside in GROUPS.items():
        parts: list[str] = []
        for kind, names in (("cell", list(SAID)[:2]), ("functional", list(SAID)[1:])):
            found = [row for row in rows if row["kind"] == kind and inside(row)]
            parts += [str(len(found)), *(_number(rank(found, name)) for name in names)]
        lines.append(line((group, *parts)))
    return "\n".join(lines)


def rank(rows: Sequence[Row], said: str) -> float | None:
    """Return Spearman's correlation of what came back with what a quantity says; None for fewer than three rows, or equal ones."""
    told, back = [SAID[said](row) for row in rows], [row["came_back"] for row in rows]
    if len(rows) < 3 or len(set(told)) == 1 or len(set(back)) == 1:
        return None
    found: Any = spearmanr(told, back)  # has no type that every checker knows
    return float(found.statistic)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
