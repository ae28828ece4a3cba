"""Colours, sizes and logarithmic ticks of the theory's pictures."""

from __future__ import annotations

from typing import Literal

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

BLUE, ORANGE, GREEN, PURPLE = "#0b57a4", "#c2410c", "#00795c", "#7a3b9e"
SHADES = ("#c6d8ea", "#eef3f8")
ONE, TWO = (7.0, 2.9), (7.0, 3.2)  # inches, one panel and two


def log_axis(ax: Axes, which: Literal["x", "y", "both"], most: int = 7) -> None:
    """Label powers of ten as plain numbers.

    matplotlib's own labels need its mathematics, which the style turns off.
    """
    for name, axis in (("x", ax.xaxis), ("y", ax.yaxis)):
        if which in (name, "both"):
            axis.set_major_locator(LogLocator(numticks=most))
            axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axis.set_minor_locator(NullLocator())
            axis.set_minor_formatter(NullFormatter())
