"""Figure of several runs: each prediction against what was seen, a panel each, with the line where they agree."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from unforgotten.records.rows import Run
from unforgotten.reports.run.over_runs import PREDICTIONS, Cell, Prediction
from unforgotten.reports.style import INK, arm_handles, arm_styles, legend, line_handle, panels


def predictions_figure(runs: Sequence[Run]) -> Figure | None:
    """Draw predicted against seen numbers, logarithmic where a miss is a quotient; None where there is none."""
    drawn = [(one, [cell for run in runs for cell in one.cells(run)]) for one in PREDICTIONS]
    drawn = [(one, cells) for one, cells in drawn if len({cell.predicted for cell in cells}) > 1]
    if not drawn:
        return None
    storages = list(dict.fromkeys(cell.storage for _, cells in drawn for cell in cells))
    figure, axes = panels(1, len(drawn), (5.5 * len(drawn), 5.2))
    for ax, (prediction, cells) in zip(axes, drawn, strict=True):
        _panel(ax, prediction, cells, storages)
    handles = arm_handles(storages)
    for handle in handles:
        handle.set_linestyle("none")
    legend(figure, [*handles, line_handle("seen = predicted", INK, "--")])
    return figure


def _panel(ax: Axes, prediction: Prediction, cells: Sequence[Cell], storages: Sequence[str]) -> None:
    for storage, style in arm_styles(storages).items():
        own = [cell for cell in cells if cell.storage == storage and (cell.seen > 0 or not prediction.relative)]
        ax.plot(
            [cell.predicted for cell in own],
            [cell.seen for cell in own],
            linestyle="none",
            marker=style.marker,
            markersize=5,
            color=style.colour,
            markerfacecolor=style.face,
            zorder=3,
        )
    if prediction.relative:
        ax.set_xscale("log")
        ax.set_yscale("log")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
            axis.set_minor_formatter(NullFormatter())
    ends = min(ax.get_xlim()[0], ax.get_ylim()[0]), max(ax.get_xlim()[1], ax.get_ylim()[1])
    ax.plot(ends, ends, color=INK, linestyle="--", linewidth=1.1, zorder=2)
    ax.set_xlim(*ends)
    ax.set_ylim(*ends)
    ax.set_aspect("equal")
    ax.grid(True, axis="both")
    ax.set_xlabel("predicted")
    ax.set_ylabel("seen")
    ax.set_title(prediction.name)
