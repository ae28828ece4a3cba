"""Figures of the weights: the gain by format and storage arm, and expected against observed code flips."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from unforgotten.records.rows import Run, select
from unforgotten.reports.labels import short
from unforgotten.reports.run.slots import Slots, dodge
from unforgotten.reports.style import (
    FORMAT_MARKERS,
    INK,
    SOFT,
    arm_handles,
    arm_styles,
    draw_intervals,
    legend,
    line_handle,
    panels,
    side_legend,
)

TICK_FACTORS = (1.0, 2.0, 5.0)


def gain_figure(run: Run) -> Figure | None:
    """Draw the gain of every method, format by format, with the line at 1 where the whole update survives."""
    if not select(run.rows, metric="gain"):
        return None
    slots = Slots(run.formats, run.methods)
    figure, axes = panels(1, 1, (11, 4.2))
    gain_panel(axes[0], run, slots)
    slots.dress(axes[0])
    axes[0].set_title("Gain: share of the update that survives quantization, along itself", pad=17)
    legend(figure, [*arm_handles(run.storages), line_handle("the whole update survives", INK, "--")])
    return figure


def gain_panel(ax: Axes, run: Run, slots: Slots) -> None:
    """Draw gains in the slots, grouped by format."""
    ax.axhline(1, color=INK, linestyle="--", linewidth=1.1, zorder=2)
    for i, (storage, style) in enumerate(arm_styles(run.storages).items()):
        offset = dodge(i, len(run.storages))
        places = [
            (slots.x(f, m) + offset, run.get("gain", "unlearned", m, storage, f))
            for f in slots.groups
            for m in slots.members
        ]
        draw_intervals(ax, places, style, size=6)
    bottom, top = ax.get_ylim()
    ax.set_ylim(min(0.0, bottom), max(1.3, top))


def flips_figure(run: Run) -> Figure | None:
    """Draw observed against expected code flips, both axes logarithmic, with the line where they agree."""
    pairs = [
        (expected.value, observed.value, expected.storage, expected.format)
        for expected in select(run.rows, metric="expected_flips")
        if (observed := run.get("code_flips", *expected.place)) and observed.value and expected.value
    ]
    if not pairs:
        return None
    figure, axes = panels(1, 1, (11, 6))
    ax, styles = axes[0], arm_styles(run.storages)
    markers = {f: FORMAT_MARKERS[i % len(FORMAT_MARKERS)] for i, f in enumerate(run.formats)}
    ends = _round_ends([x for pair in pairs for x in pair[:2] if x])
    ax.plot(ends, ends, color=INK, linestyle="--", linewidth=1.1, zorder=2)
    for expected_flips, code_flips, storage, format_name in pairs:
        style = styles[storage or ""]
        ax.plot(
            [expected_flips or 0],
            [code_flips or 0],
            linestyle="none",
            marker=markers[format_name],
            markersize=7,
            color=style.colour,
            markerfacecolor=style.face,
            markeredgewidth=1.3,
            zorder=3,
            clip_on=False,
        )
    _log_axes(ax, ends)
    ax.set_xlabel("code flips expected by chance")
    ax.set_ylabel("code flips observed")
    ax.grid(True, axis="both")
    side_legend(figure, [*_flip_handles(run, markers), line_handle("observed = expected", INK, "--")])
    return figure


def _flip_handles(run: Run, markers: dict[str, str]) -> list[Line2D]:
    arms = arm_handles(run.storages)
    for handle in arms:
        handle.set_linestyle("none")
    return [
        *arms,
        *(
            Line2D([], [], linestyle="none", marker=m, color=SOFT, markerfacecolor="none", label=short(f))
            for f, m in markers.items()
        ),
    ]


def _round_ends(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis: the next 1, 2 or 5 times a power of ten below and above all values."""
    powers = range(math.floor(math.log10(min(values))) - 1, math.ceil(math.log10(max(values))) + 2)
    nice = [factor * 10.0**power for power in powers for factor in TICK_FACTORS]
    low = max(x for x in nice if x < 0.95 * min(values))
    return low, min(x for x in nice if x > 1.05 * max(values))


def _log_axes(ax: Axes, ends: tuple[float, float]) -> None:
    for axis, scale, limit in ((ax.xaxis, ax.set_xscale, ax.set_xlim), (ax.yaxis, ax.set_yscale, ax.set_ylim)):
        scale("log")
        limit(*ends)
        axis.set_major_locator(LogLocator(subs=TICK_FACTORS))
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axis.set_minor_locator(NullLocator())
    ax.set_aspect("equal")
