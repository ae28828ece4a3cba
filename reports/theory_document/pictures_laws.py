"""Pictures of T6 to T12; Gaussian weights of standard deviation 0.02."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unforgotten.reports.style import INK, SOFT, legend, line_handle, panels
from unforgotten.reports.theory_document.axes import BLUE, GREEN, ONE, ORANGE, PURPLE, TWO, log_axis
from unforgotten.theory.calculators.bound import Question, bound
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.laws.absmax import absmax_law
from unforgotten.theory.laws.block_law import block_law
from unforgotten.theory.laws.concentration import concentrated_cosine
from unforgotten.theory.laws.densities import Gaussian
from unforgotten.theory.laws.energy import expected_cosine
from unforgotten.theory.laws.gating import gated_mean
from unforgotten.theory.laws.regimes import on_grid_gain
from unforgotten.theory.laws.scaling import flip_rate
from unforgotten.theory.laws.wash import exact_wash_test, wash_test

WEIGHTS = Gaussian(0.02)
FORMATS = {"int8-g64": GREEN, "int4-g64": BLUE, "nf4-b64": PURPLE, "fp4-b64": ORANGE}


def t6_flips() -> Figure:
    """Draw the share of codes that change, by the size of the update and the format."""
    figure, (ax,) = panels(1, 1, ONE)
    law, sizes = absmax_law(WEIGHTS, 64, spacing=1.0), np.geomspace(1e-6, 1e-2, 13)
    for name, colour in FORMATS.items():
        fmt = format_named(name)
        rates = [block_law(fmt, WEIGHTS, law, x, "fixed").flips for x in sizes.tolist()]
        ax.loglog(sizes, rates, color=colour)
    log_axis(ax, "both")
    ax.set_xlabel("|δ|, one size for all weights")
    ax.set_ylabel("share of codes that change")
    ax.set_title("T6: flips are rare, and proportional to the update")
    legend(figure, [line_handle(name, colour) for name, colour in FORMATS.items()])
    return figure


def t7_staircases() -> Figure:
    """Draw what weights at five places of a cell let through, and the mean over all places."""
    figure, (ax,) = panels(1, 1, ONE)
    delta = np.linspace(-1.5, 1.5, 601)
    for place in (0.1, 0.3, 0.5, 0.7, 0.9):
        ax.plot(delta, np.floor(place + delta), color=SOFT, linewidth=0.8)
    ax.plot(delta, gated_mean(delta, 1.0), color=BLUE, linewidth=2)
    ax.set_xlabel("update δ, in steps")
    ax.set_ylabel("survivor D, in steps")
    ax.set_title("T7: each weight passes all or nothing, their mean passes δ")
    legend(figure, [line_handle("a weight", SOFT), line_handle("mean over the cell", BLUE)])
    return figure


def t8_cosine() -> Figure:
    """Draw the cosine of the survivor with an update of one size."""
    figure, (ax,) = panels(1, 1, ONE)
    sizes = np.geomspace(1e-4, 10, 401)
    ax.semilogx(sizes, [expected_cosine(np.array([x]), 1.0) for x in sizes], color=BLUE)
    ax.axhline(1, color=INK, linestyle=":", linewidth=1.2)
    log_axis(ax, "x")
    ax.set_ylim(0, 1.08)
    ax.set_xlabel("|δ| in steps")
    ax.set_title("T8: whole in the mean, noisy in direction")
    legend(figure, [line_handle("cosine of D and δ", BLUE), line_handle("gain", INK, ":")])
    return figure


def t9_concentration() -> Figure:
    """Draw the cosine of an update of fixed length on a share of the weights."""
    figure, (ax,) = panels(1, 1, ONE)
    shares = np.geomspace(1e-5, 1, 401)
    drawn = {0.003: PURPLE, 0.01: BLUE, 0.03: GREEN, 0.1: ORANGE}
    for rms, colour in drawn.items():
        ax.loglog(shares, [concentrated_cosine(rms, p, 1.0) for p in shares.tolist()], color=colour)
    log_axis(ax, "both")
    ax.set_xlabel("share of the weights that move")
    ax.set_ylabel("cosine")
    ax.set_title("T9: the same length on fewer weights is less noisy")
    legend(figure, [line_handle(f"rms {rms:g} steps", colour) for rms, colour in drawn.items()])
    return figure


def t10_bits_and_blocks() -> Figure:
    """Draw the flip rate by bits and by block size."""
    figure, (left, right) = panels(1, 2, TWO)
    bits, sizes = range(2, 9), [2**i for i in range(4, 15)]
    left.semilogy(bits, [flip_rate(1e-4, b, WEIGHTS, 64) for b in bits], "o-", color=BLUE, markersize=4)
    log_axis(left, "y")
    left.set_xlabel("bits, blocks of 64")
    left.set_ylabel("P(flip), |δ| = 0.0001")
    left.set_title("T10: more bits, more flips")
    right.semilogx(sizes, [flip_rate(1e-4, 4, WEIGHTS, b) for b in sizes], "o-", color=BLUE, markersize=4)
    log_axis(right, "x")
    right.set_ylim(0, None)
    right.set_xlabel("weights in a block, 4 bits")
    right.set_title("larger blocks, fewer")
    return figure


def t11_regimes() -> Figure:
    """Draw the gain of weights that lie on the grid, and of weights that bf16 lets move."""
    figure, (left, right) = panels(1, 2, TWO)
    spreads = np.geomspace(0.05, 2, 201)
    left.semilogx(spreads, [on_grid_gain(x, 1.0) for x in spreads.tolist()], color=INK)
    log_axis(left, "x")
    left.set_xlabel("spread of δ, in steps")
    left.set_ylabel("gain")
    left.set_title("T11 (a): weights on the grid")
    drawn = {"int8-row": GREEN, "int4-g64": BLUE, "int4-row": SOFT, "nf4-b64": PURPLE, "fp4-b64": ORANGE}
    for name, colour in drawn.items():
        _gains(right, name, colour)
    log_axis(right, "x")
    right.set_xlabel("lr, 500 steps of AdamW")
    right.set_title("(b): trained in bf16")
    legend(figure, [line_handle(name, colour) for name, colour in drawn.items()])
    return figure


def _gains(ax: Axes, name: str, colour: str) -> None:
    rates = np.geomspace(1e-6, 1e-4, 25)
    gains = [bound(Question(name, std=0.02, lr=lr, steps=500)).gain for lr in rates.tolist()]
    ax.semilogx(rates, [np.nan if g is None else g for g in gains], color=colour)


def t12_wash() -> Figure:
    """Draw the p-value of a number of flips, by the exact law and by Hoeffding's bound."""
    figure, (ax,) = panels(1, 1, ONE)
    p, counts = np.full(2_000, 0.05), range(40, 165, 4)
    mean, variance = float(p.sum()), float((p * (1 - p)).sum())
    ax.semilogy(counts, [exact_wash_test(k, p).p for k in counts], color=BLUE)
    bounded = [wash_test(k, mean, variance, p.size).p for k in counts]
    ax.semilogy(counts, bounded, color=ORANGE, linestyle="--")
    ax.axvline(mean, color=SOFT, linestyle=":", linewidth=1.2)
    log_axis(ax, "y")
    ax.set_xlabel(f"flips seen, where {mean:.0f} are expected of {p.size:,} weights")
    ax.set_ylabel("p-value")
    ax.set_title("T12: left it hides in the cells, right it aims at thresholds")
    legend(figure, [line_handle("exact law", BLUE), line_handle("Hoeffding", ORANGE, "--")])
    return figure
