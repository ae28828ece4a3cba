"""Pictures of T1 to T5."""

from __future__ import annotations

import itertools
import math

import numpy as np
from matplotlib.figure import Figure

from unforgotten.reports.style import INK, SOFT, legend, line_handle, panels
from unforgotten.reports.theory_document.axes import BLUE, GREEN, ONE, ORANGE, PURPLE, SHADES, log_axis
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import quantize, round_trip
from unforgotten.theory.geometry.adamw import adamw_limit_ratio, ratios
from unforgotten.theory.geometry.dead_zone import frozen_exponent
from unforgotten.theory.geometry.drift import unflipped_update_upper_bound
from unforgotten.theory.geometry.sandwich import displacement_sandwich


def t1_cells() -> Figure:
    """Draw the cells of three formats in one block, with the thresholds and the values."""
    figure, (ax,) = panels(1, 1, (7.0, 2.4))
    names = ("int4-g64", "nf4-b64", "fp4-b64")
    for y, name in enumerate(reversed(names)):
        fmt = format_named(name)
        ends = np.concatenate([[-1], fmt.thresholds.astype(np.float64) / fmt.divisor, [1]])
        for k, (low, high) in enumerate(itertools.pairwise(ends)):
            ax.barh(y, high - low, left=low, height=0.62, color=SHADES[k % 2], edgecolor="white", linewidth=0.8)
        levels = np.asarray(fmt.levels) / fmt.divisor
        ax.plot(levels, np.full(len(levels), y), "|", color=INK, markersize=11)
    ax.set_yticks(range(len(names)), reversed(names))
    ax.set_xlabel("weight / absmax of its block")
    ax.set_title("T1: a cell a code; strokes are the values")
    ax.grid(False)
    return figure


def t2_unflipped() -> Figure:
    """Draw what an adaptive grid does to the weights of a block in which no code changes."""
    fmt = format_named("int4-g64")
    w = np.linspace(-0.05, 0.05, 64, dtype=np.float32)[None]
    w_new, grown = w.copy(), 4e-4
    w_new[0, 0] -= np.float32(grown)
    kept = quantize(w, fmt)[0] == quantize(w_new, fmt)[0]
    survived = (round_trip(w_new, fmt).astype(np.float64) - round_trip(w, fmt)) * kept
    bound = float(unflipped_update_upper_bound(np.array(grown), fmt))
    figure, (ax,) = panels(1, 1, ONE)
    ax.plot(w[0], survived[0] / grown, "o", color=BLUE, markersize=4)
    for side in (-1, 1):
        ax.axhline(side * bound / grown, color=ORANGE, linestyle="--", linewidth=1.4)
    ax.set_xlabel("weight")
    ax.set_ylabel("D / max|δ|")
    ax.set_title("T2: one end grew, no code changed, and every value moved")
    legend(figure, [line_handle("bound of an unflipped value", ORANGE, "--")])
    return figure


def t3_sandwich() -> Figure:
    """Draw the band that holds |D|, and what four weights of a cell do, in steps."""
    delta = np.linspace(0, 3, 301)
    half = np.full(delta.shape, 0.5)
    band = displacement_sandwich(delta, half, half)
    figure, (ax,) = panels(1, 1, ONE)
    ax.fill_between(delta, band.lower, band.upper, color=SHADES[0])
    for place in (0.1, 0.4, 0.6, 0.9):
        ax.plot(delta, np.floor(place + delta), color=BLUE, linewidth=1)
    ax.plot(delta, delta, color=INK, linestyle=":", linewidth=1.2)
    ax.set_xlabel("|δ| in steps")
    ax.set_ylabel("|D| in steps")
    ax.set_title("T3: the survivor is at most a step from the update")
    handles = [line_handle("four weights of one cell", BLUE), line_handle("|D| = |δ|", INK, ":")]
    legend(figure, handles)
    return figure


def t4_dead_zone() -> Figure:
    """Draw the magnitude from which on weights stand still, by size of the update and dtype."""
    figure, (ax,) = panels(1, 1, ONE)
    sizes = np.geomspace(1e-7, 1e-3, 801)
    shown = {"bfloat16": ORANGE, "float16": GREEN, "float8_e4m3fn": PURPLE}
    for dtype, colour in shown.items():
        ax.loglog(sizes, [math.ldexp(1.0, frozen_exponent(e, dtype)) for e in sizes.tolist()], color=colour)
    fmt = format_named("int4-g64")
    zero_bin = 0.05 * float(np.abs(fmt.thresholds).min()) / fmt.divisor
    ax.axhline(zero_bin, color=SOFT, linestyle="--", linewidth=1.2)
    log_axis(ax, "both")
    ax.set_xlabel("largest update")
    ax.set_ylabel("frozen from |w| =")
    ax.set_title("T4: above the line a weight cannot move")
    handles = [line_handle(dtype, colour) for dtype, colour in shown.items()]
    legend(figure, [*handles, line_handle("zero bin of INT4, absmax 0.05", SOFT, "--")])
    return figure


def t5_ratio() -> Figure:
    """Draw c_t at the defaults, its limit, and the folk bound."""
    figure, (ax,) = panels(1, 1, ONE)
    t = np.unique(np.geomspace(1, 1e4, 400).astype(int))
    ax.semilogx(t, ratios(t, 0.9, 0.999), color=BLUE)
    ax.axhline(adamw_limit_ratio(), color=SOFT, linestyle=":", linewidth=1.4)
    ax.axhline(1, color=ORANGE, linestyle="--", linewidth=1.4)
    log_axis(ax, "x")
    ax.set_ylim(0, 8)
    ax.set_xlabel("step t")
    ax.set_ylabel("largest step / lr")
    ax.set_title("T5: the largest step of AdamW, attained")
    legend(
        figure,
        [line_handle("c_t", BLUE), line_handle("its limit", SOFT, ":"), line_handle("folk bound, false", ORANGE, "--")],
    )
    return figure
