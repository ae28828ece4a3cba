"""Examples of T18 to T22."""

from __future__ import annotations

import math

import numpy as np

from unforgotten.theory.geometry.adamw import adamw_displacement_upper_bound
from unforgotten.theory.geometry.second_moment import second_moment_displacement_upper_bound
from unforgotten.theory.laws.minimax import (
    code_information_upper_bound,
    flip_probability_upper_bound,
    unbiased_variance_lower_bound,
)
from unforgotten.theory.models.dither import dithered_loss_radius, shared_dither_survivor
from unforgotten.theory.models.functional_gain import functional_gain, share_returned
from unforgotten.theory.models.gating_certificate import (
    effective_weights,
    gating_share_upper_bound,
    safe_step_lower_bound,
)


def t18_certificate() -> list[str]:
    """Take like weights of gradient 1, of which each code changes with probability 1/70."""
    delta, step, lines = 1e-4, 0.007, []
    for n in (10_000, 100_000, 1_000_000):
        g, d = np.ones(n), np.full(n, delta)
        n_eff, share = effective_weights(g, d, step), gating_share_upper_bound(g, d, step, 0.05)
        lines.append(
            f"- {n:,} weights, δ = {delta:g}, step {step:g}: n_eff {n_eff:,.0f}, so gating takes at most {share:.0%} (95 %)."
        )
    safe = safe_step_lower_bound(np.ones(1_000_000), np.full(1_000_000, delta), 0.1, 0.05)
    return [*lines, f"- Of the last, no format with steps up to {safe:.3g} takes more than 10 %."]


def t19_dither() -> list[str]:
    """Take weights on the grid and an update of a tenth of a step, which rounding to nearest swallows."""
    rng = np.random.default_rng(19)
    w, delta = rng.integers(-7, 8, 100_000).astype(float), np.full(100_000, 0.1)
    nearest = float((np.rint(w + delta) - np.rint(w)).mean() / 0.1)
    dithered = float(shared_dither_survivor(w, delta, 1.0, rng.uniform(size=w.size)).mean() / 0.1)
    radius = dithered_loss_radius(np.full(1_000_000, 1e-3), 0.007, 0.05)
    return [
        f"- 100,000 weights on the grid, δ a tenth of a step: gain {nearest:.2f} to nearest, {dithered:.2f} dithered.",
        f"- A million weights with gradient 0.001, step 0.007, F linear: with probability 95 % F falls by less than {radius:.3g}.",
    ]


def t20_functional_gain() -> list[str]:
    """Take one weight of large gradient that passes twice, and nine that pass nothing."""
    gradient, delta = np.append(10.0, np.ones(9)), np.ones(10)
    kept = np.append(2.0, np.zeros(9))
    gain = float(kept @ delta / (delta @ delta))
    gamma = functional_gain(gradient, delta, kept)
    found = share_returned(gradient, delta, kept, curvature=0.1)
    return [
        f"- Gain of the weights {gain:.2f}, functional gain {gamma:.2f}: {-found.share:.0%} is added, nothing comes back.",
        f"- With |e'He| at most 0.1 |e|² what comes back lies between {found.low:.1%} and {found.high:.1%}: the sign is open.",
    ]


def t21_second_moment() -> list[str]:
    """Take 230 steps with a gradient of one size, and the second moment at every step, at six, and at two."""
    steps, lines = 230, []
    for times in (list(range(1, steps + 1)), [1, 5, 20, 60, 120, 230], [1, 230]):
        v = [1 - 0.999**t for t in times]
        mean = float(second_moment_displacement_upper_bound(1.0, times, v)) / steps
        lines.append(f"- v known at {len(times)} of {steps} steps: at most {mean:.2f} lr a step.")
    return [*lines, f"- T5, which knows nothing of v: {adamw_displacement_upper_bound(1.0, steps) / steps:.2f} lr."]


def t22_minimax() -> list[str]:
    """Take 15 levels over 0.105, steps of 0.007, and an update of 0.0001."""
    p = float(flip_probability_upper_bound(1e-4, levels=15, length=0.105))
    noise = math.sqrt(float(unbiased_variance_lower_bound(1e-4, np.array([-0.007, 0.0, 0.007]))))
    bits = code_information_upper_bound(p) / math.log(2)
    return [
        f"- 15 levels over 0.105 and δ = 0.0001: a code changes with probability at most {p:.2%}, for every codebook.",
        f"- On steps of 0.007 an update of 0.0001 that passes without bias has a standard deviation of at least {noise:.2g}.",
        f"- Such codes tell at most {bits:.3f} bits a weight about the update.",
    ]
