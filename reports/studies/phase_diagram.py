"""Gain over the edge in units of the cell at zero: `table.md` from the rows that `experiments/studies/phase_diagram.py` wrote."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import spearmanr

from unforgotten.records.files import read_json_lines
from unforgotten.records.methods import forget_term
from unforgotten.records.packed_rows import ROWS_FILE
from unforgotten.reports.markdown import line, spread

Row = Mapping[str, Any]
EDGES = (0.0, 0.4, 0.6, 0.8, 1.0, 1.3, 2.5, math.inf)
"""Ends of the ranges of the ratio."""
GROUPS: Mapping[str, Callable[[Row], bool]] = {
    "bf16, GA": lambda row: row["storage"] == "bf16" and forget_term(row["method"]) == "GA",
    "bf16, NPO and others": lambda row: row["storage"] == "bf16" and forget_term(row["method"]) != "GA",
    "fp32 masters": lambda row: row["storage"] == "fp32",
}


class Rule(NamedTuple):
    """What a range of the ratio says of the gain: at least `least`, at most `most`."""

    low: float
    high: float
    least: float
    most: float


RULES = (Rule(0.0, 0.5, -0.1, 0.3), Rule(0.5, 1.0, 0.0, 0.7), Rule(1.0, 2.5, 0.6, 1.25), Rule(2.5, math.inf, 0.9, 1.1))
"""Read off the cells that had been looked at; whether it holds, those that had not say."""


def render(folder: Path) -> Mapping[str, str]:
    """Return the files made of the study's rows: `table.md`."""
    rows = read_json_lines(folder / ROWS_FILE)
    found = cells(rows)
    intro = (
        f"{len(found)} cells, an unlearned model in a format each, of {len({row['run'] for row in found})} published runs. *Ratio*: the edge of the "
        "storage, above which a step of lr moves no weight, over the border of the format's cell at zero in the median block. *Gain* and "
        "*taken back*, the share of the added forget loss that the cells undo: median, lowest and highest. Spearman's rank correlation of "
        f"ratio and gain (at most 1) over the bf16 cells: {rank(found):.2f}."
    )
    parts = [intro, ratio_table(found), rule_intro(), rule_table(found), assumed_intro(), assumed_table(rows)]
    return {"table.md": "\n\n".join(parts) + "\n"}


def cells(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of cells that were measured."""
    return [row for row in rows if row["kind"] == "cell"]


def rank(found: Iterable[Row]) -> float:
    """Return Spearman's correlation of ratio and gain, cut at 1, over the bf16 cells; nan for fewer than three."""
    own = [row for row in found if row["storage"] == "bf16"]
    if len(own) < 3:
        return math.nan
    told: Any = spearmanr([row["ratio"] for row in own], [min(row["gain"], 1.0) for row in own])
    return float(told.statistic)


def ratio_table(found: Sequence[Row]) -> str:
    """Return a line for each range of the ratio and group."""
    heads = ("ratio", "parameters", "cells", "formats", "gain", "taken back, %")
    lines = [line(heads), line(["---"] * len(heads))]
    for low, high in itertools.pairwise(EDGES):
        for group, inside in GROUPS.items():
            own = [row for row in found if inside(row) and low <= row["ratio"] < high]
            if own:
                backs = [100 * row["came_back"] for row in own if row["came_back"] is not None]
                formats = ", ".join(sorted({row["format"] for row in own}))
                told = (spread([row["gain"] for row in own], 2), spread(backs, 0) if backs else "–")
                lines.append(line((_span(low, high), group, str(len(own)), formats, *told)))
    return "\n".join(lines)


def rule_intro() -> str:
    """Return what the second table shows."""
    return (
        "The rule was read off the cells that had been looked at; the others are of runs whose rows nobody had seen when it was "
        "committed, of the same base and formats."
    )


def rule_table(found: Sequence[Row]) -> str:
    """Return a line for each rule: how many cells keep it, of those looked at and of the others."""
    heads = ("ratio", "gain", "looked at: inside", "not looked at: inside", "not looked at: gain")
    lines = [line(heads), line(["---"] * len(heads))]
    for rule in RULES:
        seen, fresh = ([row for row in inside(found, rule) if row["looked_at"] is known] for known in (True, False))
        counts = (f"{sum(holds(row, rule) for row in own)} of {len(own)}" for own in (seen, fresh))
        told = spread([row["gain"] for row in fresh], 2) if fresh else "–"
        lines.append(line((_span(rule.low, rule.high), f"{rule.least:g} to {rule.most:g}", *counts, told)))
    return "\n".join(lines)


def inside(found: Iterable[Row], rule: Rule) -> list[Row]:
    """Return the cells that a rule speaks of."""
    return [row for row in found if rule.low <= row["ratio"] < rule.high]


def holds(row: Row, rule: Rule) -> bool:
    """Whether a cell's gain is what a rule says."""
    return bool(rule.least <= row["gain"] <= rule.most)


def assumed_intro() -> str:
    """Return what the third table shows."""
    return (
        "Where a Llama-2-7B would stand in bf16 if its weights were normal with std 0.02; nothing there was measured."
    )


def assumed_table(rows: Iterable[Row]) -> str:
    """Return a line for each format of the model that is assumed."""
    heads = ("lr", "format", "ratio", "the rule says of the gain")
    lines = [line(heads), line(["---"] * len(heads))]
    for row in rows:
        if row["kind"] == "assumed":
            rule = next(one for one in RULES if one.low <= row["ratio"] < one.high)
            lines.append(
                line((f"{row['lr']:g}", row["format"], f"{row['ratio']:.2f}", f"{rule.least:g} to {rule.most:g}"))
            )
    return "\n".join(lines)


def _span(low: float, high: float) -> str:
    return f"{low:g} and more" if math.isinf(high) else f"{low:g} to {high:g}"
