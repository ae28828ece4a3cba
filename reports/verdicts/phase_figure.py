"""The phase diagram, drawn: gain over the edge in units of the cell at zero.

python -P -m unforgotten.reports.verdicts.phase_figure reports/published/phase-diagram
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from unforgotten.records.files import read_json_lines, write_bytes
from unforgotten.records.packed_rows import ROWS_FILE
from unforgotten.reports.studies.phase_diagram import GROUPS, RULES, cells
from unforgotten.reports.style import INK, SOFT, WASH, Kind, legend, line_handle, panels, rendered

NAME = "phase"
COLOURS = {"bf16, GA": "#7a3b9e", "bf16, NPO and others": "#c2410c", "fp32 masters": "#0b57a4"}
FAMILIES = {"int": "s", "fp4": "^", "nf4": "o"}
"""Markers of formats by what their names begin with."""
ENDS = (0.08, 40.0)
"""Of the axis of the ratio; what lies beyond stands at its end."""
GAINS = (-0.1, 1.4)


def phase_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw every cell, what the rule says, and the ratio of 1."""
    figure, (ax,) = panels(1, 1, (7.2, 3.9))
    for rule in RULES:
        low, high = max(rule.low, ENDS[0]), min(rule.high, ENDS[1])
        ax.add_patch(Rectangle((low, rule.least), high - low, rule.most - rule.least, facecolor=WASH, zorder=1))
    found = cells(rows)
    for group, inside in GROUPS.items():
        for family, marker in FAMILIES.items():
            own = [row for row in found if inside(row) and row["format"].startswith(family)]
            for known in (True, False):
                shown = [row for row in own if row["looked_at"] is known]
                ax.plot(
                    [min(max(row["ratio"], ENDS[0]), ENDS[1]) for row in shown],
                    [row["gain"] for row in shown],
                    linestyle="none",
                    marker=marker,
                    markersize=5,
                    color=COLOURS[group],
                    markerfacecolor=COLOURS[group] if not known else "none",
                    markeredgewidth=1.0,
                    zorder=3,
                )
    ax.axvline(1.0, color=INK, linestyle="--", linewidth=1.1, zorder=2)
    ax.axhline(1.0, color=SOFT, linestyle=":", linewidth=1.1, zorder=2)
    ax.set_xscale("log")
    ax.set_xlim(ENDS[0] * 0.9, ENDS[1] * 1.1)
    ax.set_ylim(*GAINS)
    ticks = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.set_xlabel("edge of the storage at lr, over the border of the format's cell at zero")
    ax.set_ylabel("gain: share of the update left")
    legend(figure, [*_handles(), line_handle("ratio of 1", INK, "--"), line_handle("the whole update", SOFT, ":")])
    return figure


def _handles() -> list[Line2D]:
    plain: Mapping[str, Any] = {"linestyle": "none", "markersize": 5, "markeredgewidth": 1.0}
    return [
        *(Line2D([], [], marker="s", color=colour, label=name, **plain) for name, colour in COLOURS.items()),
        *(
            Line2D([], [], marker=mark, color=SOFT, markerfacecolor="none", label=name, **plain)
            for name, mark in FAMILIES.items()
        ),
        Line2D([], [], marker="o", color=SOFT, label="filled: not looked at before the rule", **plain),
    ]


def drawn(folder: Path, kind: Kind) -> bytes:
    """Return the figure of a study's rows.

    Raises:
        ValueError: the folder holds no cell.
    """
    rows = read_json_lines(folder / ROWS_FILE)
    if not cells(rows) or not all(math.isfinite(row["ratio"]) for row in rows):
        raise ValueError(f"{folder}: must hold cells with a ratio, got none")
    picture = rendered(lambda: phase_figure(rows), kind)
    if picture is None:
        raise ValueError(f"{folder}: must give a figure, got none")
    return picture


if __name__ == "__main__":
    place = Path(sys.argv[1])
    write_bytes(place / f"{NAME}.svg", drawn(place, "svg"))
    write_bytes(place / f"{NAME}.png", drawn(place, "png"))
