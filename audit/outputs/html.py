"""`audit.html`: the result as one page that needs nothing but itself.

In go the result and the rows of its tensors, out comes the text of the page, whose charts are laid out here as well:

    Path("audit.html").write_text(render(result, rows), "utf-8", "xmlcharrefreplace")
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from unforgotten.audit.findings.sentences import STDERRS, share
from unforgotten.audit.outputs.answer import answer
from unforgotten.audit.outputs.layer_map import layer_maps
from unforgotten.audit.outputs.merged import merged_findings, span
from unforgotten.audit.outputs.page import page_environment
from unforgotten.audit.outputs.result import AuditResult, Storage
from unforgotten.audit.outputs.result_rows import FormatRow, TensorRow
from unforgotten.audit.outputs.summary import number
from unforgotten.audit.verdict.power import FEW
from unforgotten.theory.geometry.dead_zone import MIN_WEIGHTS

GAIN_AXIS = (0.0, 2.0)  # grows where a gain lies outside
PLOT_WIDTH = 520.0
PLOT_HEIGHT = 200.0


def render(result: AuditResult, rows: Sequence[TensorRow]) -> str:
    """Return the page of an audit. Every name in it is escaped: the tensors' names come from strangers."""
    environment = page_environment("unforgotten.audit")
    environment.filters |= {
        "share": share,
        "number": number,
        "p_value": p_value,
        "plain": plain,
        "short": short,
        "span": span,
    }
    script = environment.get_template("audit.js").render()
    digest = hashlib.sha256(script.encode()).digest()
    return environment.get_template("audit.html.j2").render(
        r=result,
        a=answer(result),
        merged=merged_findings(result["findings"]),
        few=FEW,
        script=Markup(script),
        script_hash=f"sha256-{base64.b64encode(digest).decode()}",
        maps=layer_maps(result["compared"], rows),
        gains=gain_chart(result["formats"]),
        binades=binade_chart(result["storage"]),
        by_format=_by_format(rows),
        stderrs=STDERRS,
        min_weights=MIN_WEIGHTS,
    )


@dataclass(frozen=True)
class GainDot:
    """One row of the gain chart, in plot units."""

    label: str
    gain: float
    margin: float
    x: float
    left: float
    right: float


@dataclass(frozen=True)
class GainChart:
    """Gains on adaptive grids with their intervals; `ticks` are (value, x)."""

    dots: list[GainDot]
    ticks: list[tuple[float, float]]
    width: float = PLOT_WIDTH


def gain_chart(rows: Sequence[FormatRow]) -> GainChart:
    """Lay out the gain of every format that has one, deployment's grid only."""
    shown = [
        (row["format"], row["gain"], STDERRS * (row["gain_stderr"] or 0.0))
        for row in rows
        if row["grid"] == "adaptive" and row["gain"] is not None
    ]
    low = math.floor(min([GAIN_AXIS[0], *(gain for _, gain, _ in shown)]))
    high = math.ceil(max([GAIN_AXIS[1], *(gain for _, gain, _ in shown)]))

    def x(value: float) -> float:
        return round(PLOT_WIDTH * (min(max(value, low), high) - low) / (high - low), 1)

    dots = [GainDot(f, g, m, x(g), x(g - m), x(g + m)) for f, g, m in shown]
    step = 0.5 if high - low <= 4 else math.ceil((high - low) / 8)
    ticks = [low + i * step for i in range(int((high - low) / step) + 1)]
    return GainChart(dots, [(t, x(t)) for t in ticks])


@dataclass(frozen=True)
class BinadeBar:
    """One bar of the binade chart, in plot units; `label` is the lower end of the binade."""

    label: str
    weights: int
    moved_share: float
    x: float
    width: float
    height: float


@dataclass(frozen=True)
class BinadeChart:
    """Moved share by magnitude; `edge` is the x of the dead zone's threshold, None without one."""

    bars: list[BinadeBar]
    edge: float | None
    width: float = PLOT_WIDTH
    height: float = PLOT_HEIGHT


def binade_chart(storage: Storage) -> BinadeChart:
    """Lay out the binades that hold enough weights to say something, evenly spaced in log |w|."""
    seen = [b for b in storage["binades"] if b["weights"] >= MIN_WEIGHTS]
    if not seen:
        return BinadeChart([], None)
    first = math.log2(seen[0]["low"])
    slot = PLOT_WIDTH / (math.log2(seen[-1]["low"]) - first + 1)

    def x(magnitude: float) -> float:
        return round(slot * (math.log2(magnitude) - first), 1)

    bars = [
        BinadeBar(
            label=f"{b['low']:.2g}",
            weights=b["weights"],
            moved_share=b["moved"] / b["weights"],
            x=x(b["low"]),
            width=round(0.8 * slot, 1),
            height=round(PLOT_HEIGHT * b["moved"] / b["weights"], 1),
        )
        for b in seen
    ]
    threshold = storage["dead_zone"]["threshold"]
    return BinadeChart(bars, None if threshold is None else x(threshold))


def _by_format(rows: Sequence[TensorRow]) -> list[tuple[str, list[tuple[TensorRow, TensorRow]]]]:
    """Group rows as (format, [(adaptive row, fixed row) of each tensor]); codes have one row, for both."""
    ordered = sorted(rows, key=lambda row: row["format"])
    return [
        (name, [(pair[0], pair[-1]) for _, g in groupby(group, lambda r: r["name"]) for pair in [list(g)]])
        for name, group in groupby(ordered, lambda row: row["format"])
    ]


def plain(x: float | None) -> str:
    """Return a number as text that a script can read; nothing where there is none."""
    return "" if x is None else repr(x)


def short(x: float | None) -> str:
    """Return a number as text of three digits, or a dash."""
    return "–" if x is None else f"{x:.3g}"


def p_value(p: float | None) -> str:
    """Return a p-value as text of two digits, or a dash."""
    if p is None:
        return "–"
    return "< 1e-99" if p < 1e-99 else f"{p:.2g}"
