"""Pictures of T13 to T17."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from unforgotten.reports.style import BASE_COLOUR, GATING_COLOUR, INK, SOFT, legend, line_handle, panels
from unforgotten.reports.theory_document.axes import BLUE, ONE, ORANGE, SHADES, log_axis
from unforgotten.reports.theory_document.examples_models import decomposed
from unforgotten.theory.models.divergence import total_variation_upper_bound
from unforgotten.theory.models.lattice import skew
from unforgotten.theory.models.recovery import recovered_fraction
from unforgotten.theory.models.tails import bernstein_radius


def t13_averaging() -> Figure:
    """Draw mean effect and gating noise by the number of weights."""
    figure, (ax,) = panels(1, 1, ONE)
    n, delta, step = np.geomspace(10, 1e9, 200), 1e-4, 0.007
    ax.loglog(n, n * delta, color=BLUE)
    ax.loglog(n, [bernstein_radius(m * step * delta, step, 1e-6) for m in n.tolist()], color=ORANGE)
    log_axis(ax, "both")
    ax.set_xlabel("weights n, gradient 1, δ = 0.0001, step 0.007")
    ax.set_ylabel("change of F")
    ax.set_title("T13: the effect grows as n, the noise as its root")
    legend(figure, [line_handle("effect g·δ", BLUE), line_handle("noise, exceeded with p < 10⁻⁶", ORANGE)])
    return figure


def t14_waterfall() -> Figure:
    """Draw the lost effect of an update everywhere, and of one near zero, as gating and base shift."""
    rng = np.random.default_rng(14)
    w, x = rng.normal(0, 0.02, 65_536), rng.normal(0, 0.1, 65_536)
    figure, (ax,) = panels(1, 1, ONE)
    names = ("update of every weight", "update of weights below 0.0035")
    for i, edge in enumerate((np.inf, 0.0035)):
        lost = decomposed(w, -4e-4 * np.sign(x) * (np.abs(w) < edge), x)
        terms = (lost.total, lost.gating, lost.base_shift)
        for j, (size, colour) in enumerate(zip(terms, (INK, GATING_COLOUR, BASE_COLOUR), strict=True)):
            ax.bar(i + (j - 1) * 0.22, size, width=0.2, color=colour)
    ax.axhline(0, color=SOFT, linewidth=0.8)
    ax.set_xticks(range(2), names)
    ax.set_ylabel("lost effect on the loss")
    ax.set_title("T14: total = gating + base shift (INT4 row)")
    legend(
        figure,
        [line_handle("total", INK), line_handle("gating", GATING_COLOUR), line_handle("base shift", BASE_COLOUR)],
    )
    return figure


def t15_divergence() -> Figure:
    """Draw both bounds of the total variation, and their minimum."""
    figure, (ax,) = panels(1, 1, ONE)
    kl = np.linspace(0, 4, 401)
    ax.plot(kl, np.sqrt(kl / 2), color=SOFT, linestyle="--", linewidth=1.2)
    ax.plot(kl, np.sqrt(-np.expm1(-kl)), color=ORANGE, linestyle=":", linewidth=1.4)
    ax.plot(kl, total_variation_upper_bound(kl), color=BLUE, linewidth=2)
    ax.set_ylim(0, 1.2)
    ax.set_xlabel("KL in nats")
    ax.set_ylabel("total variation at most")
    ax.set_title("T15: how far a metric in [0, 1] can move")
    legend(
        figure,
        [
            line_handle("bound used", BLUE),
            line_handle("Pinsker", SOFT, "--"),
            line_handle("Bretagnolle-Huber", ORANGE, ":"),
        ],
    )
    return figure


def t16_recovery() -> Figure:
    """Draw made-up items of which a known share comes back, and the estimate of it with its interval."""
    figure, (ax,) = panels(1, 1, ONE)
    rng = np.random.default_rng(16)
    unlearned, target = rng.uniform(0, 20, 60), rng.uniform(80, 100, 60)
    shares = np.linspace(0, 1, 6)
    for share in shares.tolist():
        noise = rng.normal(0, 20, 60)
        r = recovered_fraction(unlearned, unlearned + share * (target - unlearned) + noise, target, seed=0)
        ax.plot([share, share], [r.low, r.high], color=BLUE, linewidth=1.6)
        ax.plot(share, r.rho, "o", color=BLUE, markersize=5)
    ax.plot(shares, shares, color=SOFT, linestyle=":", linewidth=1.2)
    ax.set_xlabel("share that came back (60 made-up items)")
    ax.set_ylabel("ρ and its interval")
    ax.set_title("T16: 0 as unlearned, 1 as the target at the same precision")
    return figure


def t17_cells() -> Figure:
    """Draw the cell of plain rounding and that of GPTQ for two columns, and an update that leaves only the latter."""
    figure, (ax,) = panels(1, 1, (7.0, 3.6))
    x, delta = np.array([3.0, 1.0]), (0.4, 0.3)
    factor = np.linalg.cholesky(np.linalg.inv(np.outer(x, x) + 0.1 * np.eye(2))).T
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
    cell = corners @ np.linalg.inv(skew(factor)).T
    ax.add_patch(Polygon(corners, facecolor="none", edgecolor=SOFT, linestyle="--", linewidth=1.4))
    ax.add_patch(Polygon(cell, facecolor=SHADES[0], edgecolor=BLUE, linewidth=1.4, alpha=0.7))
    ax.annotate("", delta, (0, 0), arrowprops={"arrowstyle": "->", "color": ORANGE, "linewidth": 1.8})
    ax.set_xlim(-2.6, 2.6)
    ax.set_ylim(-2.2, 2.2)
    ax.set_aspect("equal")
    ax.set_xlabel("column 1, in steps")
    ax.set_ylabel("column 2, in steps")
    ax.set_title("T17: in the square, out of GPTQ's cell")
    legend(
        figure,
        [
            line_handle("plain rounding", SOFT, "--"),
            line_handle("GPTQ, input (3, 1)", BLUE),
            line_handle("update", ORANGE),
        ],
    )
    return figure
