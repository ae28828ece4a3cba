"""Figures of behaviour: M1-M4 by method and precision, and the recovered fraction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from unforgotten.records.rows import Row, Run, select
from unforgotten.reports.labels import precision_label
from unforgotten.reports.run.slots import Slots, dodge
from unforgotten.reports.style import (
    RETRAINED_COLOUR,
    SOFT,
    TARGET_COLOUR,
    WASH,
    ArmStyle,
    Dashes,
    arm_handles,
    arm_styles,
    draw_intervals,
    legend,
    line_handle,
    panels,
)

TITLES: Mapping[str, str] = {
    "M1": "M1: verbatim memory of the forget texts (0–100, low = forgotten)",
    "M2": "M2: knowledge of the forget texts (0–100, low = forgotten)",
    "M3": "M3: privacy leakage (percent, 0 = as the retrained model, −100 = not unlearned)",
    "M4": "M4: knowledge of the retain texts (0–100, high = still useful)",
}
RECOVERED = ("rho_M1", "rho_M2")
REFERENCES: tuple[tuple[str, str, Dashes], ...] = (
    ("target", TARGET_COLOUR, "-"),
    ("retrained", RETRAINED_COLOUR, "--"),
)
UNDEFINED_HEIGHT = 0.12  # of the panel: the strip for cases without a value
RHO_AXIS = (-0.5, 1.25)  # grows to RHO_LIMITS where the data ask for it
RHO_LIMITS = (-1.5, 2.0)


def metrics_figure(run: Run) -> Figure | None:
    """Draw M1-M4 of the target, the retrained and every unlearned model, at every precision, one panel a metric."""
    shown = [m for m in TITLES if select(run.rows, metric=m)]
    if not shown:
        return None
    precisions = ("none", *run.formats)
    trained = [m for m, _, _ in REFERENCES if select(run.rows, model=m, metric=tuple(shown))]
    slots = Slots([*trained, *run.methods], precisions)
    figure, axes = panels(len(shown), 1, (11, 2.3 * len(shown) + 1.2), sharex=True)
    for ax, metric in zip(axes, shown, strict=True):
        _metric_panel(ax, run, metric, slots)
        slots.dress(ax)
        ax.set_title(TITLES[metric], pad=17)
    axes[-1].set_xticklabels([precision_label(m) for _, m, _ in slots.cells()])
    references = [line_handle(f"{m}, unquantized", c, d) for m, c, d in REFERENCES if m in trained]
    legend(figure, [*arm_handles(run.storages), *references])
    return figure


def _metric_panel(ax: Axes, run: Run, metric: str, slots: Slots) -> None:
    for model, colour, dashes in REFERENCES:
        value = run.value(metric, model)
        if value is not None:
            ax.axhline(value, color=colour, linestyle=dashes, linewidth=1.1, zorder=2)
        if model in slots.groups:
            places = ((slots.x(model, f), run.get(metric, model, format=f)) for f in slots.members)
            draw_intervals(ax, places, ArmStyle(colour, "D", True), size=4)
    for storage, style, offset in _arms(run):
        draw_intervals(
            ax,
            (
                (slots.x(m, f) + offset, run.get(metric, "unlearned", m, storage, f))
                for m in run.methods
                for f in slots.members
            ),
            style,
        )
    if metric != "M3":
        ax.set_ylim(bottom=min(-4, ax.get_ylim()[0]), top=max(104, ax.get_ylim()[1]))


def recovery_figure(run: Run) -> Figure | None:
    """Draw the recovered fraction of M1 and of M2 by method, format and storage arm; undefined ones are marked, not placed."""
    shown = [m for m in RECOVERED if select(run.rows, metric=m)]
    if not shown:
        return None
    slots = Slots(run.methods, run.formats)
    figure, axes = panels(len(shown), 1, (11, 2.7 * len(shown) + 1.2), sharex=True)
    for ax, metric in zip(axes, shown, strict=True):
        rows = select(run.rows, metric=metric)
        _recovery_panel(ax, run, metric, slots)
        ax.set_ylim(*_rho_limits(rows))
        slots.dress(ax)
        ax.set_title(f"ρ({metric.removeprefix('rho_')}): 0 = as unlearned, 1 = as the quantized target", pad=17)
    cross = Line2D([], [], linestyle="none", marker="x", color=SOFT, label="undefined: nothing to recover")
    legend(figure, [*arm_handles(run.storages), cross])
    return figure


def _recovery_panel(ax: Axes, run: Run, metric: str, slots: Slots) -> None:
    if any(row.value is None for row in select(run.rows, metric=metric)):
        strip = Rectangle((0, 0), 1, UNDEFINED_HEIGHT, transform=ax.transAxes, color=WASH, zorder=0.6)
        ax.add_patch(strip)
        ax.text(0.004, UNDEFINED_HEIGHT / 2, "undefined", transform=ax.transAxes, va="center", color=SOFT, fontsize=8)
    for level, dashes in ((0.0, "-"), (1.0, "--")):
        ax.axhline(level, color=TARGET_COLOUR, linestyle=dashes, linewidth=1.0, zorder=2)
    for storage, style, offset in _arms(run):
        cells = [
            (slots.x(m, f) + offset, run.get(metric, "unlearned", m, storage, f))
            for m in run.methods
            for f in run.formats
        ]
        draw_intervals(ax, cells, style)
        undefined = [x for x, row in cells if row is not None and row.value is None]
        ax.plot(
            undefined,
            [UNDEFINED_HEIGHT / 2] * len(undefined),
            linestyle="none",
            marker="x",
            markersize=5,
            color=style.colour,
            transform=ax.get_xaxis_transform(),
        )


def _rho_limits(rows: list[Row]) -> tuple[float, float]:
    ends = list(chain(RHO_AXIS, *(row.bounds for row in rows if row.bounds and row.value is not None)))
    return max(min(ends), RHO_LIMITS[0]), min(max(ends), RHO_LIMITS[1])


def _arms(run: Run) -> Iterator[tuple[str, ArmStyle, float]]:
    for i, (storage, style) in enumerate(arm_styles(run.storages).items()):
        yield storage, style, dodge(i, len(run.storages))
