"""Examples of T13 to T17, the overview's table, and the verdicts of the published runs.

Nothing goes in but the numbers written here, and the published rows; out come lines of Markdown, which the template of
`theory/README.md` puts beside the statements:

    t17_lattice()[0]
    "- Input (3, 1), steps of 1, update (0.4, 0.3) from the middle of the cells. Swallowed by plain rounding: True. …"
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.records.depths import words
from unforgotten.records.rows import read_run
from unforgotten.reports.run.conjectures import conjectures
from unforgotten.theory.calculators.bound import Question, bound
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import round_trip
from unforgotten.theory.models.auc import auc_range
from unforgotten.theory.models.curvature import gating_curvature
from unforgotten.theory.models.decomposition import LostEffect, lost_effect
from unforgotten.theory.models.divergence import metric_change_upper_bound, total_variation_upper_bound
from unforgotten.theory.models.fieller import effective_items, fieller_interval
from unforgotten.theory.models.greedy import certified_tokens
from unforgotten.theory.models.lattice import error_norm_upper_bound, is_swallowed, one_feature_shift
from unforgotten.theory.models.recovery import recovered_fraction
from unforgotten.theory.models.response import linear_response
from unforgotten.theory.models.tails import bernstein_radius

PUBLISHED = Path(__file__).parents[1] / "published"
FORMATS = ("int8-row", "nf4-b64", "int4-g64", "int4-row", "fp4-b64")


def survival_by_format() -> list[str]:
    """Show what each format leaves of 50 AdamW steps of 1e-5, with fp32 masters and with bf16 parameters."""
    lines = ["| format | codes that change | gain | cosine | gain, trained in bf16 |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for name in FORMATS:
        whole, coarse = (bound(Question(name, std=0.02, lr=1e-5, steps=50, dtype=dtype)) for dtype in ("fp32", "bf16"))
        lines.append(
            f"| {name} | {whole.flips:.1%} | {_number(whole.gain)} | {_number(whole.cosine)} | {_number(coarse.gain)} |"
        )
    return lines


def _number(x: float | None) -> str:
    return "–" if x is None else f"{x:.2f}"


def t13_response() -> list[str]:
    """Show that the mean effect grows as n, the gating noise as its root."""
    delta, step, lines = 1e-4, 0.007, []
    for n in (100, 10_000, 1_000_000):
        r = linear_response(np.ones(n), np.full(n, delta), step)
        radius = bernstein_radius(r.variance, r.largest, 1e-6)
        lines.append(
            f"- {n:,} weights with gradient 1, δ = {delta:g}, step {step:g}: effect {r.mean:.3g}, and with probability "
            f"1 − 10⁻⁶ within ±{radius:.3g} of that ({radius / r.mean:.0%})."
        )
    bend = gating_curvature(np.ones(n), np.full(n, delta), step)
    lines.append(f"- Second order, Hessian diagonal 1, {n:,} weights: gating adds {bend:.3g} to the mean of F.")
    return lines


def t14_decomposition() -> list[str]:
    """Take a logistic loss of one output of 65,536 weights: an update everywhere, and one near zero only."""
    rng = np.random.default_rng(14)
    w, x = rng.normal(0, 0.02, 65_536), rng.normal(0, 0.1, 65_536)
    lines = ["| the update moves | its effect | lost at int4-row | gating | base shift |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for name, edge in (("every weight", math.inf), ("weights below 0.0035", 0.0035)):
        delta = -4e-4 * np.sign(x) * (np.abs(w) < edge)
        effect = _loss(w + delta, x) - _loss(w, x)
        lost = decomposed(w, delta, x)
        terms = (effect, lost.total, lost.gating, lost.base_shift)
        lines.append(f"| {name} | {' | '.join(f'{term:.3f}' for term in terms)} |")
    return lines


def decomposed(w: NDArray[Any], delta: NDArray[Any], x: NDArray[Any]) -> LostEffect:
    """Compute T14 for the logistic loss at input `x`, in one row of INT4."""
    fmt = format_named("int4-row")
    q, q_new = (round_trip(v[None], fmt)[0].astype(np.float64) for v in (w, w + delta))
    return lost_effect(
        w=_loss(w, x),
        w_new=_loss(w + delta, x),
        q=_loss(q, x),
        q_new=_loss(q_new, x),
        w_plus_d=_loss(w + q_new - q, x),
        q_plus_delta=_loss(q + delta, x),
    )


def _loss(w: NDArray[Any], x: NDArray[Any]) -> float:
    return math.log1p(math.exp(-float((w * x).sum())))


def t15_bounds() -> list[str]:
    """Show a bound from a divergence, one from logits, one from scores."""
    kl, change = 0.01, 0.5
    certified = certified_tokens(np.array([[3.0, 1.0, 0.0], [2.0, 1.5, 0.0]]), change)
    members, others = np.array([-1.0, -1.2, -2.0]), np.array([-1.9, -3.0, -3.5])
    low, now, high = auc_range(members, others, 0.06)
    return [
        (
            f"- KL = {kl} nats: total variation at most {float(total_variation_upper_bound(kl)):.3f}, so a sampled metric on "
            f"0 … 100 moves by at most {metric_change_upper_bound(kl, high=100):.1f}."
        ),
        (
            f"- No logit moves by more than {change}: a top-two gap of 2 is {_word(certified[0])}, a gap of 0.5 is "
            f"{_word(certified[1])}."
        ),
        f"- Three scores a side, none moves by more than 0.06: AUC {now:.3f} stays in [{low:.3f}, {high:.3f}].",
    ]


def _word(certified: bool) -> str:
    return "certified" if certified else "not certified"


def t16_recovery() -> list[str]:
    """Show made-up items of which part comes back, and a pair between which there is nothing to recover."""
    rng = np.random.default_rng(16)
    unlearned, target = rng.uniform(0, 20, 60), rng.uniform(80, 100, 60)
    quantized = unlearned + 0.3 * (target - unlearned) + rng.normal(0, 10, 60)
    part = recovered_fraction(unlearned, quantized, target, seed=0)
    none = recovered_fraction(unlearned, quantized, rng.permutation(unlearned), seed=0)
    few = fieller_interval((quantized - unlearned)[:10], (target - unlearned)[:10])
    sparse = np.repeat([1.0, 0.0], [8, 52])
    return [
        (
            f"- 60 items, unlearned mean {unlearned.mean():.1f}, quantized {quantized.mean():.1f}, target at that precision "
            f"{target.mean():.1f}: ρ = {part.rho:.2f} [{part.low:.2f}, {part.high:.2f}]."
        ),
        (
            f"- The first 10 items: n_eff = {few.effective:.1f}, ρ = {few.rho:.2f} [{few.low:.2f}, {few.high:.2f}] by "
            f"Fieller with pseudo-items. Of 60 items of which 8 hold all, n_eff = {effective_items(sparse):.0f}."
        ),
        f"- Against a target that knows no more than the unlearned model: defined = {none.defined}.",
    ]


def t17_lattice() -> list[str]:
    """Show two columns and one input direction where plain rounding swallows the update and GPTQ passes it."""
    x, step, damping = np.array([3.0, 1.0]), np.array([1.0, 1.0]), 0.1
    delta = np.array([0.4, 0.3])
    factor = np.linalg.cholesky(np.linalg.inv(np.outer(x, x) + damping * np.eye(2))).T
    shift = one_feature_shift(x, delta, damping)
    plain = bool((np.abs(delta) < step / 2).all())
    swallowed = bool(is_swallowed(np.zeros(2), delta, step, factor))
    return [
        (
            f"- Input (3, 1), steps of 1, update ({delta[0]}, {delta[1]}) from the middle of the cells. Swallowed by plain "
            f"rounding: {plain}. GPTQ's second column sees {shift[1]:.2f} steps. Swallowed by GPTQ: {swallowed}."
        ),
        (
            f"- Where no code is clipped, the error of any row in the norm of H is at most "
            f"{float(error_norm_upper_bound(step, factor)):.2f}."
        ),
    ]


def verdicts() -> list[str]:
    """Return the verdict on each conjecture in every published run, by the rules of `reports/run/conjectures.py`."""
    lines = ["| run | conjecture | verdict | how much was tested |", "| --- | --- | --- | --- |"]
    for config in sorted(PUBLISHED.glob("*/config.json")):
        name = config.parent.name
        link = f"[{name}](../reports/published/{name})"
        for run in read_run(config.parent).by_depth():
            depth = "" if run.depth is None else f", {words(run.depth)}"
            lines += [f"| {link}{depth} | {c.name} | {c.verdict} | {c.scope} |" for c in conjectures(run)]
    return lines
