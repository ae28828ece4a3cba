"""The one figure that has to stand alone: what survives of the update, and what the model then says."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unforgotten.records.rows import Run, select
from unforgotten.reports.labels import precision_label, short
from unforgotten.reports.run.sentences import headline_sentences
from unforgotten.reports.run.slots import Slots, dodge
from unforgotten.reports.run.update_figures import gain_panel
from unforgotten.reports.style import (
    RETRAINED_COLOUR,
    TARGET_COLOUR,
    arm_handles,
    arm_styles,
    draw_intervals,
    legend,
    line_handle,
    panels,
)


def headline_figure(run: Run) -> Figure | None:
    """Draw the gain by format, and right of it M1 before and after quantization, each titled with what its rows say."""
    have_gain = bool(select(run.rows, metric="gain"))
    have_memory = bool(select(run.rows, metric="M1", model="unlearned"))
    if not (have_gain or have_memory):
        return None
    figure, axes = panels(1, have_gain + have_memory, (5.5 * (have_gain + have_memory), 4.6))
    sentences = headline_sentences(run)
    if have_gain:
        _gain(axes[0], run)
        axes[0].set_title(sentences.gain, fontsize=9)
    if have_memory:
        _memory(axes[-1], run)
        axes[-1].set_title(sentences.memory, fontsize=9)
    references = [
        line_handle("target (never unlearned)", TARGET_COLOUR),
        line_handle("retrained (no forget texts)", RETRAINED_COLOUR, "--"),
    ]
    legend(figure, [*arm_handles(run.storages), *(references if have_memory else [])])
    return figure


def _gain(ax: Axes, run: Run) -> None:
    slots = Slots(run.formats, run.methods)
    gain_panel(ax, run, slots)
    slots.dress(ax, members=False, groups=False)
    middles = [sum(slots.span(f)) / 2 for f in run.formats]
    ax.set_xticks(middles, [short(f) for f in run.formats], fontsize=8.5)
    ax.set_ylabel("gain: share of the unlearning update\nthat survives quantization")


def _memory(ax: Axes, run: Run) -> None:
    precisions = ("none", *run.formats)
    slots = Slots(precisions, run.methods)
    middles = [sum(slots.span(p)) / 2 for p in precisions]
    for model, colour, dashes in (("target", TARGET_COLOUR, "-"), ("retrained", RETRAINED_COLOUR, "--")):
        rows = [(x, run.get("M1", model, format=p)) for x, p in zip(middles, precisions, strict=True)]
        values = [(x, row.value) for x, row in rows if row is not None and row.value is not None]
        ax.plot([x for x, _ in values], [v for _, v in values], color=colour, linestyle=dashes, linewidth=1.4)
    for i, (storage, style) in enumerate(arm_styles(run.storages).items()):
        offset = dodge(i, len(run.storages))
        places = [(x + offset, run.get("M1", "unlearned", m, storage, p)) for p, m, x in slots.cells()]
        draw_intervals(ax, places, style)
    slots.dress(ax, members=False, groups=False)
    ax.set_xticks(middles, [short(precision_label(p)) for p in precisions], fontsize=8.5)
    ax.set_ylim(min(-3, ax.get_ylim()[0]), max(108, ax.get_ylim()[1]))
    ax.set_ylabel("M1: forget text recited word for word\n(ROUGE-L F1, 0–100)")
