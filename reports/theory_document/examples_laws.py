"""Examples of T6 to T12: INT4 in blocks of 64, Gaussian weights of standard deviation 0.02, unless they say otherwise."""

from __future__ import annotations

import numpy as np

from unforgotten.theory.calculators.bound import Question, bound
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.laws.absmax import absmax_law, expected_absmax, expected_inverse_absmax
from unforgotten.theory.laws.block_law import block_law
from unforgotten.theory.laws.concentration import concentrated_cosine, follower_ratio, needed_share
from unforgotten.theory.laws.densities import Gaussian
from unforgotten.theory.laws.energy import effective_step, expected_cosine
from unforgotten.theory.laws.gating import gated_mean, gated_variance, riemann_gain
from unforgotten.theory.laws.multiplicity import false_discoveries
from unforgotten.theory.laws.regimes import hidden_energy_upper_bound, hidden_wash_z, on_grid_gain, swallowing_absmax
from unforgotten.theory.laws.scaling import flip_rate, flip_ratio
from unforgotten.theory.laws.update import survival
from unforgotten.theory.laws.wash import exact_wash_test, wash_test

WEIGHTS = Gaussian(0.02)


def t6_flips() -> list[str]:
    """Show the law of a whole block against 2^20 simulated weights, on the grid of the weights before."""
    delta, fmt = 1e-4, format_named("int4-g64")
    rng = np.random.default_rng(6)
    w = rng.normal(0, WEIGHTS.scale, (1024, 1024)).astype(np.float32)
    w_new = w + np.float32(delta) * rng.choice(np.array([-1, 1], np.float32), w.shape)
    seen = survival(w, w_new, fmt, "fixed")
    law = block_law(fmt, WEIGHTS, absmax_law(WEIGHTS, 64), delta, "fixed")
    return [
        (
            f"- |δ| = {delta:g}, both signs, int4-g64: the law says {law.flips:.3%} of the codes change; "
            f"{seen.code_flips / seen.weights:.3%} of {seen.weights:,} simulated codes did."
        )
    ]


def t7_gating() -> list[str]:
    """Show one weight that is gated all or nothing, and the gain of a whole format."""
    step = expected_absmax(WEIGHTS, 64) / 7
    delta = 1e-4
    absmax = expected_absmax(WEIGHTS, 64)
    spread = float(gated_variance(delta, step)) ** 0.5
    gains = ", ".join(
        f"{name} {riemann_gain(format_named(name), WEIGHTS, absmax):.3f}"
        for name in ("int4-g64", "nf4-b64", "fp4-b64", "int8-g64")
    )
    return [
        (
            f"- δ = {delta:g}, step {step:.3g}: D is {step:.3g} with probability {delta / step:.3g} and else 0. "
            f"Its mean is {float(gated_mean(delta, step)):.3g}, its standard deviation {spread:.3g}."
        ),
        f"- The gain of a small update in a block with absmax {absmax:.3g}, by the Riemann sum: {gains}.",
    ]


def t8_cosine() -> list[str]:
    """Show how noisy the survivor of an update of one size is, at three sizes, and the effective step of NF4."""
    absmax = expected_absmax(WEIGHTS, 64)
    step, lines = absmax / 7, []
    for share in (0.01, 0.1, 1.0):
        cosine = expected_cosine(np.full(4, share * step), step)
        lines.append(f"- |δ| = {share:g} steps everywhere: cosine {cosine:.3f}.")
    steps = [effective_step(format_named(n), WEIGHTS, absmax) for n in ("int4-g64", "nf4-b64")]
    lines.append(f"- At absmax {absmax:.3g} the effective step is {steps[0]:.3g} for INT4 and {steps[1]:.3g} for NF4.")
    return lines


def t9_concentration() -> list[str]:
    """Show an update of equal length on fewer weights, and the share that a wanted cosine asks for."""
    step, rms = 0.007, 1e-4
    cosines = "; ".join(
        f"{share:.1%} of the weights: {concentrated_cosine(rms, share, step):.3f}" for share in (1.0, 0.1, 0.01)
    )
    return [
        f"- An update of rms {rms:g} over all weights, step {step:g}. Its cosine, when confined to {cosines}.",
        "- x of an adaptive grid, Gaussian weights: "
        + ", ".join(
            f"{follower_ratio(format_named(n), WEIGHTS, absmax_law(WEIGHTS, 64)):.2f} ({n})"
            for n in ("int4-g64", "nf4-b64", "fp4-b64")
        )
        + ".",
        f"- A cosine of 0.5 asks for a share of at most {needed_share(rms, 0.5, step):.2%}.",
    ]


def t10_bits_and_blocks() -> list[str]:
    """Show flip rates by bits and by block size."""
    rates = [
        (size, flip_rate(1e-4, 4, WEIGHTS, size), expected_inverse_absmax(WEIGHTS, size))
        for size in (32, 64, 128, 4096)
    ]
    return [
        f"- INT8 flips {flip_ratio(8, 4):.1f} times as many codes as INT4 at the same block size.",
        "- |δ| = 0.0001 at 4 bits: "
        + "; ".join(f"blocks of {b}: {r:.2%} (E[1/absmax] = {i:.1f})" for b, r, i in rates)
        + ".",
    ]


def t11_biased_regimes() -> list[str]:
    """Show each of the three ways in which U fails."""
    edge = 2.0**-8
    lines = [
        "- (a) Weights on the grid, Gaussian updates of standard deviation 0.1, 0.3 and 1 step: gain "
        + ", ".join(f"{on_grid_gain(spread, 1.0):.2g}" for spread in (0.1, 0.3, 1.0))
        + ".",
        f"- (b) An update that stays in |w| < {edge:.4g} is lost whole once the absmax of the block reaches "
        + ", ".join(f"{swallowing_absmax(format_named(n), edge):.3g} ({n})" for n in ("int4-g64", "nf4-b64", "fp4-b64"))
        + ".",
    ]
    for dtype, lr in (("bf16", 1e-5), ("bf16", 3e-7), ("fp32", 1e-5)):
        gains = ", ".join(
            f"{name} {bound(Question(name, 0.02, lr, 500, dtype=dtype)).gain:.2f}"
            for name in ("int4-row", "int4-g64", "fp4-b64", "nf4-b64", "int8-row", "fp8-row")
        )
        lines.append(f"- (b) Gain after 500 AdamW steps of {lr:g}, parameters in {dtype}: {gains}.")
    hidden = hidden_energy_upper_bound(1.0) ** 0.5
    lines.append(
        f"- (c) Projected training hides an update of up to {hidden:.2f} steps rms; with a million weights that should "
        f"flip with probability 0.1 the wash test then says z = {hidden_wash_z(10**6, 0.1):.0f}."
    )
    return lines


def t12_wash() -> list[str]:
    """Show too few flips in one tensor, and five tensors judged together."""
    p, flips = np.full(10_000, 0.01), 60
    bounded = wash_test(flips, float(p.sum()), float((p * (1 - p)).sum()), p.size)
    exact = exact_wash_test(flips, p)
    found = false_discoveries(np.array([1e-6, 0.004, 0.02, 0.3, 0.9]), 0.05)
    return [
        (
            f"- {flips} flips where {p.sum():.0f} were expected of {p.size:,} weights: z = {bounded.z:.2f}, "
            f"p = {exact.p:.2g} by the exact law, {bounded.p:.2g} by Hoeffding's bound."
        ),
        (
            f"- Five tensors with p = 1e-6, 0.004, 0.02, 0.3 and 0.9: {int(found.rejected.sum())} are significant at a false "
            "discovery rate of 5 %."
        ),
    ]
