"""Figures of the decomposition: gating and base shift, and what the surviving update alone does to the target."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from unforgotten.records.rows import Run, select
from unforgotten.reports.labels import storage_short
from unforgotten.reports.run.slots import Slots, dodge
from unforgotten.reports.style import (
    BASE_COLOUR,
    GATING_COLOUR,
    INK,
    SOFT,
    TARGET_COLOUR,
    arm_handles,
    arm_styles,
    draw_intervals,
    legend,
    line_handle,
    panels,
)

EFFECTS = (("gating_effect", -0.2, GATING_COLOUR, ""), ("base_shift_effect", 0.2, BASE_COLOUR, "////"))
BAR_WIDTH = 0.38
HYBRID_TITLES: Mapping[str, str] = {
    "forget_loss": "Forget loss (nats per token, high = forgotten)",
    "M1": "M1: verbatim memory (0–100, low = forgotten)",
}


def decomposition_figure(run: Run) -> Figure | None:
    """Draw gating and base shift of the forget loss, a panel for each storage arm, beside the whole effect of unlearning."""
    if not select(run.rows, metric=("gating_effect", "base_shift_effect")):
        return None
    slots = Slots(run.methods, run.formats)
    figure, axes = panels(len(run.storages), 1, (11, 2.9 * len(run.storages) + 1.2), sharex=True, sharey=True)
    for ax, storage in zip(axes, run.storages, strict=True):
        _effect_bars(ax, run, storage, slots)
        slots.dress(ax)
        ax.axhline(0, color=INK, linewidth=0.9)
        ax.set_title(storage_short(storage), pad=17)
        ax.set_ylabel("nats of forget loss\nlost under quantization")
    handles = [
        Patch(facecolor=GATING_COLOUR, label="gating: only what survives of the update"),
        Patch(facecolor=BASE_COLOUR, hatch="////", edgecolor="white", label="base shift: on the quantized target"),
        line_handle("whole effect of unlearning", SOFT, "--"),
    ]
    legend(figure, handles)
    return figure


def _effect_bars(ax: Axes, run: Run, storage: str, slots: Slots) -> None:
    for metric, offset, colour, hatch in EFFECTS:
        for method, format_name, x in slots.cells():
            row = run.get(metric, "unlearned", method, storage, format_name)
            if row is None or row.value is None:
                continue
            ax.bar(x + offset, row.value, BAR_WIDTH, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
            if row.bounds:
                ax.plot([x + offset] * 2, row.bounds, color=INK, linewidth=1.1)
    before = run.value("forget_loss", "target")
    for method in slots.groups:
        after = run.value("forget_loss", "unlearned", method, storage)
        if before is not None and after is not None:
            ax.hlines(after - before, *slots.span(method), color=SOFT, linestyle="--", linewidth=1.3)


def hybrid_figure(run: Run) -> Figure | None:
    """Draw forget loss and M1 of the target with the surviving update alone, beside the unlearned model and its copies."""
    shown = [m for m in HYBRID_TITLES if select(run.rows, metric=f"{m}@target+D")]
    if not shown:
        return None
    slots = Slots(run.methods, run.formats)
    figure, axes = panels(len(shown), 1, (11, 2.9 * len(shown) + 1.2), sharex=True)
    for ax, metric in zip(axes, shown, strict=True):
        _hybrid_panel(ax, run, metric, slots)
        slots.dress(ax)
        ax.set_title(HYBRID_TITLES[metric], pad=17)
        ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
    star = Line2D([], [], linestyle="none", marker="_", markersize=11, color=SOFT, label="quantized unlearned model")
    handles = [*arm_handles(run.storages), star, line_handle("unlearned, unquantized", SOFT, ":")]
    handles[: len(run.storages)] = _renamed(handles[: len(run.storages)])
    legend(figure, [*handles, line_handle("target, unquantized", TARGET_COLOUR)])
    return figure


def _renamed(handles: list[Line2D]) -> list[Line2D]:
    for handle in handles:
        handle.set_label(f"target + surviving update, {handle.get_label()}")
    return handles


def _hybrid_panel(ax: Axes, run: Run, metric: str, slots: Slots) -> None:
    target = run.value(metric, "target")
    if target is not None:
        ax.axhline(target, color=TARGET_COLOUR, linewidth=1.1, zorder=2)
    for i, (storage, style) in enumerate(arm_styles(run.storages).items()):
        offset = dodge(i, len(run.storages))
        for method in slots.groups:
            unlearned = run.value(metric, "unlearned", method, storage)
            if unlearned is not None:
                ax.hlines(unlearned, *slots.span(method), color=style.colour, linestyle=":", linewidth=1.6)
        cells = [(x + offset, m, f) for m, f, x in slots.cells()]
        copies = [(x, run.value(metric, "unlearned", m, storage, format=f)) for x, m, f in cells]
        ax.plot(
            [x for x, v in copies if v is not None],
            [v for _, v in copies if v is not None],
            linestyle="none",
            marker="_",
            markersize=11,
            markeredgewidth=1.6,
            color=style.colour,
        )
        hybrids = ((x, run.get(f"{metric}@target+D", "unlearned", m, storage, f)) for x, m, f in cells)
        draw_intervals(ax, hybrids, style)
