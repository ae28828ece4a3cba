"""How figures look, and how one becomes bytes: the same rows give the same bytes on every machine.

In goes a function that draws a run, made of the panels, markers and legends here; out comes SVG or PNG:

    def draw(run: Run) -> Figure | None:
        figure, (ax,) = panels(1, 1, (7.0, 3.0))
        draw_intervals(ax, [(0.0, run.get("M1", "target"))], ARM_STYLES["fp32"])
        return figure

    render_svg(draw, read_run(Path("reports/published/tiny-seed0")))
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from unforgotten.records.rows import Row, Run
from unforgotten.reports.labels import storage_short

RC: Mapping[Any, Any] = {
    "axes.edgecolor": "#57606a",
    "axes.labelcolor": "#1b1f24",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.unicode_minus": True,
    "figure.facecolor": "white",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "Helvetica"],
    "font.size": 9,
    "grid.color": "#e4e8ec",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "unforgotten",
    "text.parse_math": False,
    "xtick.color": "#1b1f24",
    "ytick.color": "#1b1f24",
}
INK, SOFT, LINE, WASH = "#1b1f24", "#57606a", "#d5dbe1", "#eef1f4"
TARGET_COLOUR, RETRAINED_COLOUR = "#1b1f24", "#6b7680"
GATING_COLOUR, BASE_COLOUR = "#7a3b9e", "#b9a13a"
FORMAT_MARKERS = "osD^vPX*<>hp"
PNG_DPI = 160
LEGEND_INCHES_PER_LETTER = 0.066
LEGEND_KEY_LETTERS = 6  # width of a key and its gaps
Dashes = Literal["-", "--", ":"]
Kind = Literal["svg", "png"]
Draw = Callable[[Run], Figure | None]


@dataclass(frozen=True)
class ArmStyle:
    """Colour, marker and fill of a storage arm; told apart without colour too."""

    colour: str
    marker: str
    filled: bool

    @property
    def face(self) -> str:
        """Fill colour of a marker."""
        return self.colour if self.filled else "white"


ARM_STYLES: Mapping[str, ArmStyle] = {
    "fp32": ArmStyle("#0b57a4", "o", True),
    "bf16": ArmStyle("#c2410c", "s", False),
    "bf16-sr": ArmStyle("#00795c", "^", True),
}
OTHER_ARMS = (ArmStyle("#8a3ffc", "D", False), ArmStyle(SOFT, "v", True))


def arm_styles(storages: Sequence[str]) -> dict[str, ArmStyle]:
    """Return a style for every storage arm of a run."""
    others = [name for name in storages if name not in ARM_STYLES]
    spare = {name: OTHER_ARMS[i % len(OTHER_ARMS)] for i, name in enumerate(others)}
    return {name: ARM_STYLES.get(name) or spare[name] for name in storages}


def render_svg(draw: Draw, run: Run) -> bytes | None:
    """Draw a figure of a run as SVG; return None where the run has no rows for it."""
    return _render(draw, run, "svg")


def render_png(draw: Draw, run: Run) -> bytes | None:
    """Draw a figure of a run as PNG; return None where the run has no rows for it."""
    return _render(draw, run, "png")


def _render(draw: Draw, run: Run, kind: Kind) -> bytes | None:
    return rendered(lambda: draw(run), kind)


def rendered(draw: Callable[[], Figure | None], kind: Kind) -> bytes | None:
    """Return a figure as SVG or PNG, drawn in the style of all; None where nothing is drawn."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC)
        figure = draw()
        if figure is None:
            return None
        FigureCanvasAgg(figure)
        stream = io.BytesIO()
        if kind == "svg":
            figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
        else:
            figure.savefig(stream, format="png", dpi=PNG_DPI, metadata={"Software": None})
    return stream.getvalue()


def panels(
    rows: int, columns: int, size: tuple[float, float], *, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return a figure and the axes of its grid, row by row."""
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)
    axes = [ax for line in grid for ax in line]
    for ax in axes:
        ax.grid(axis="y")
        ax.set_axisbelow(True)
    return figure, axes


def draw_intervals(ax: Axes, points: Iterable[tuple[float, Row | None]], style: ArmStyle, *, size: float = 5) -> None:
    """Draw a marker and its 95 % interval for every row with a value."""
    shown = [(x, row) for x, row in points if row is not None and row.value is not None]
    for x, row in shown:
        if row.bounds is not None:
            ax.plot([x, x], row.bounds, color=style.colour, linewidth=1.3, solid_capstyle="butt", zorder=3)
    ax.plot(
        [x for x, _ in shown],
        [row.value for _, row in shown if row.value is not None],
        linestyle="none",
        marker=style.marker,
        markersize=size,
        color=style.colour,
        markerfacecolor=style.face,
        markeredgewidth=1.3,
        zorder=4,
    )


def arm_handles(storages: Sequence[str]) -> list[Line2D]:
    """Return the legend entries of the storage arms."""
    return [
        Line2D(
            [],
            [],
            color=s.colour,
            marker=s.marker,
            markerfacecolor=s.face,
            linewidth=1.3,
            markersize=5,
            markeredgewidth=1.3,
            label=storage_short(name),
        )
        for name, s in arm_styles(storages).items()
    ]


def line_handle(label: str, colour: str, dashes: Dashes = "-") -> Line2D:
    """Return the legend entry of a reference line."""
    return Line2D([], [], color=colour, linestyle=dashes, linewidth=1.4, label=label)


def side_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Add one legend in a column right of all panels."""
    figure.legend(handles=list(handles), loc="outside right upper")


def legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Add one legend above all panels, in as many columns as the longest label leaves room for."""
    widest = max(len(str(handle.get_label())) for handle in handles)
    columns = int(figure.get_figwidth() / (LEGEND_INCHES_PER_LETTER * (widest + LEGEND_KEY_LETTERS)))
    figure.legend(handles=list(handles), loc="outside upper left", ncols=max(1, min(columns, len(handles))))
