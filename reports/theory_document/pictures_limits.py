"""Pictures of T18 to T22."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from unforgotten.reports.style import SOFT, legend, line_handle, panels
from unforgotten.reports.theory_document.axes import BLUE, ONE, ORANGE, log_axis
from unforgotten.theory.geometry.adamw import adamw_displacement_upper_bound
from unforgotten.theory.geometry.second_moment import second_moment_displacement_upper_bound
from unforgotten.theory.laws.minimax import code_information_upper_bound
from unforgotten.theory.laws.regimes import on_grid_survivor
from unforgotten.theory.models.functional_gain import share_returned
from unforgotten.theory.models.tails import bernstein_radius


def t18_certificate() -> Figure:
    """Draw the largest share that gating takes, by the expected number of codes that change, for like weights."""
    figure, (ax,) = panels(1, 1, ONE)
    n = np.geomspace(10, 1e6, 200)
    for alpha, colour in ((0.05, BLUE), (1e-6, ORANGE)):
        # like weights of g·delta = 1 in all: V = 1 / n_eff, M the same for |delta| << step
        ax.loglog(n, [bernstein_radius(1 / m, 1 / m, alpha) for m in n.tolist()], color=colour)
    log_axis(ax, "both")
    ax.axhline(1, color=SOFT, linewidth=0.8)
    ax.set_xlabel("codes that change, expected (like weights)")
    ax.set_ylabel("share of the effect that gating takes, at most")
    ax.set_title("T18: changed codes, not equal ones, set the limit")
    legend(figure, [line_handle("95 %", BLUE), line_handle("1 − 10⁻⁶", ORANGE)])
    return figure


def t19_dither() -> Figure:
    """Draw the mean survivor over the update, for weights on the grid: to nearest a staircase, dithered the update."""
    figure, (ax,) = panels(1, 1, ONE)
    delta = np.linspace(0.01, 2, 400)
    ax.plot(delta, on_grid_survivor(delta, 1.0) / delta, color=ORANGE)
    ax.axhline(1, color=BLUE, linewidth=2)
    ax.set_xlabel("update, in steps; weights on the grid")
    ax.set_ylabel("mean gain")
    ax.set_title("T19: dither has no bias, whatever the update")
    legend(figure, [line_handle("to nearest", ORANGE), line_handle("dithered", BLUE)])
    return figure


def t20_functional_gain() -> Figure:
    """Draw what comes back by the functional gain, with the band that a curvature leaves."""
    figure, (ax,) = panels(1, 1, ONE)
    gamma = np.linspace(0, 2, 101)
    found = [share_returned(np.ones(1), np.ones(1), np.array([x]), curvature=0.6) for x in gamma.tolist()]
    ax.fill_between(gamma, [f.low for f in found], [f.high for f in found], color=BLUE, alpha=0.2, linewidth=0)
    ax.plot(gamma, [f.share for f in found], color=BLUE)
    ax.axhline(0, color=SOFT, linewidth=0.8)
    ax.axvline(1, color=SOFT, linewidth=0.8)
    ax.set_xlabel("functional gain Γ (one weight, |H| ≤ 0.6)")
    ax.set_ylabel("share of the effect that comes back")
    ax.set_title("T20: the sign of 1 − Γ, up to curvature")
    return figure


def t21_second_moment() -> Figure:
    """Draw the bound of the mean step of 230 by the number of steps at which v is known, for a constant gradient."""
    figure, (ax,) = panels(1, 1, ONE)
    steps = 230
    counts = [2, 3, 4, 6, 9, 14, 22, 35, 60, 100, 230]
    bounds = []
    for count in counts:
        times = sorted({round(t) for t in np.geomspace(1, steps, count).tolist()} | {1, steps})
        v = [1 - 0.999**t for t in times]
        bounds.append(float(second_moment_displacement_upper_bound(1.0, times, v)) / steps)
    ax.plot(counts, bounds, "o-", color=BLUE, markersize=4)
    ax.axhline(adamw_displacement_upper_bound(1.0, steps) / steps, color=ORANGE, linestyle="--")
    ax.axhline(1, color=SOFT, linestyle=":")
    ax.set_xscale("log")
    log_axis(ax, "x")
    ax.set_ylim(0.8, 2.5)
    ax.set_xlabel("steps of 230 at which v is known, evenly on a log scale")
    ax.set_ylabel("mean step at most, in lr")
    ax.set_title("T21: a constant gradient moves by lr a step")
    legend(
        figure, [line_handle("T21", BLUE), line_handle("T5", ORANGE, "--"), line_handle("true displacement", SOFT, ":")]
    )
    return figure


def t22_minimax() -> Figure:
    """Draw what the code of one weight can tell of an update, in bits, by the probability that it changes."""
    figure, (ax,) = panels(1, 1, ONE)
    p = np.linspace(0, 1, 201)
    ax.plot(p, [code_information_upper_bound(x) / math.log(2) for x in p.tolist()], color=BLUE)
    ax.axhline(math.log2(3), color=SOFT, linestyle=":")
    ax.set_xlabel("probability that the code changes")
    ax.set_ylabel("bits a weight about the update, at most")
    ax.set_title("T22: what codes tell")
    return figure
