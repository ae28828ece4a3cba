"""Examples of T1 to T5, and the published paper's own example of a step."""

from __future__ import annotations

import math

import numpy as np

from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import quantize
from unforgotten.theory.geometry.adamw import adamw_limit_ratio, adamw_ratio_upper_bound, extremal_gradients
from unforgotten.theory.geometry.cells import cells
from unforgotten.theory.geometry.dead_zone import SIGNIFICANT_BITS, frozen_exponent
from unforgotten.theory.geometry.drift import certified_codes, scale_drift_upper_bound, unflipped_update_upper_bound
from unforgotten.theory.geometry.optimizers import frozen_magnitude
from unforgotten.theory.geometry.preimages import block_box
from unforgotten.theory.geometry.sandwich import displacement_sandwich
from unforgotten.theory.laws.absmax import expected_absmax
from unforgotten.theory.laws.densities import Gaussian, StudentT
from unforgotten.theory.laws.update import survival


def paper_step() -> list[str]:
    """Show the steps of arXiv 2410.16454, eq. 2, at its own max|w| = 200, and what is left of an update there."""
    largest, delta = 200.0, 0.1
    w = np.random.default_rng(1).normal(0, largest / 4, (1024, 4096)).clip(-largest, largest)
    w[0, 0] = largest
    lines = ["| bits | step | zero bin | P(flip) by T6 | a flip moves | codes that changed | gain |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for fmt in (format_named(f"int{bits}-tensor-paper") for bits in (4, 8)):
        step = largest / fmt.divisor
        seen = survival(w, w + delta, fmt, "fixed")
        lines.append(
            f"| {fmt.bits} | {step:g} | ±{step / 2:g} | {delta / step:.3%} | {step:g} | "
            f"{seen.code_flips / seen.weights:.3%} | {seen.gain:.2f} |"
        )
    return lines


def paper_weights() -> list[str]:
    """Show the largest of many weights of standard deviation 0.02, and the INT4 step of a block of 64 of them."""
    std, four = 0.02, format_named("int4-g64")
    normal, heavy = (expected_absmax(law, 4096 * 4096) for law in (Gaussian(std), StudentT(std)))
    block = expected_absmax(Gaussian(std), 64)
    return [
        (
            f"The expected largest of 4096 × 4096 weights of standard deviation {std} is {normal:.2g} if they are Gaussian and "
            f"{heavy:.2g} if they have the heavy tails of Student's t with 5 degrees of freedom. Of 64 Gaussian weights it "
            f"is {block:.2g}, which makes an INT4 step of {block / four.divisor:.2g}."
        )
    ]


def t1_cells() -> list[str]:
    """Show the cells around zero, and the box of one block to the last bit."""
    absmax, lines = 0.05, []
    for name in ("int4-g64", "nf4-b64", "fp4-b64"):
        fmt = format_named(name)
        ends = absmax / fmt.divisor * cells(fmt).upper[:-1]
        ends = ends[np.argsort(np.abs(ends))[:5]]
        near = ", ".join(f"{x:.5f}" for x in np.sort(ends[np.abs(ends) < 0.1 * absmax]))
        lines.append(f"- {name}, absmax {absmax}: the thresholds around 0 are {near}.")
    fmt = format_named("int4-g2")
    block = np.array([[absmax, 0.001]], np.float32)
    last = block_box(block, fmt).upper[0, 1]
    after = np.nextafter(last, np.float32(1))
    same, other = (quantize(np.array([[absmax, w]], np.float32), fmt)[0][0, 1] for w in (last, after))
    lines.append(
        f"- In float32 the block ({absmax}, 0.001) keeps its codes while its second weight is at most {last:.9g}: "
        f"code {same} there, {other} at the next float, {after:.9g}."
    )
    return lines


def t2_drift() -> list[str]:
    """Show the drift of one scale, and how many codes T2 certifies in a re-quantized tensor."""
    fmt, size = format_named("int4-g64"), np.array(1e-4)
    rng = np.random.default_rng(2)
    w = rng.normal(0, 0.02, (512, 512)).astype(np.float32)
    w_new = w + rng.uniform(-1e-4, 1e-4, w.shape).astype(np.float32)
    certified = certified_codes(w, w_new, fmt).mean()
    equal = (quantize(w, fmt)[0] == quantize(w_new, fmt)[0]).mean()
    return [
        (
            f"- max|δ| = {size:g}: the scale of an int4-g64 block moves by at most {scale_drift_upper_bound(size, fmt):.3g}, "
            f"and a block with no flip changes no value by more than {unflipped_update_upper_bound(size, fmt):.3g}."
        ),
        (
            f"- Gaussian weights of standard deviation 0.02, updates up to {size:g}, re-quantized: {certified:.2%} of the "
            f"codes are certified equal, {equal:.2%} are equal."
        ),
    ]


def t3_sandwich() -> list[str]:
    """Show bounds of the survivor, in steps, from rounding errors of at most half a step."""
    half, lines = np.array(0.5), []
    for delta in (0.1, 1.5, 10.0):
        low, high = displacement_sandwich(np.array(delta), half, half)
        lines.append(f"- |δ| = {delta:g} steps: |D| is between {low:.3g} and {high:.3g} steps.")
    return lines


def t4_dead_zone() -> list[str]:
    """Show the edge of the dead zone at lr 1e-5, and the share of Gaussian weights beyond it."""
    lr, law = 1e-5, Gaussian(0.02)
    lines = [f"Updates of at most {lr:g}, weights of standard deviation {law.scale:g}:", ""]
    lines += ["| stored in | frozen from | share frozen |", "| --- | --- | --- |"]
    for dtype in SIGNIFICANT_BITS:
        exponent = frozen_exponent(lr, dtype)
        edge = math.ldexp(1.0, exponent)
        share = 2 * float(law.cdf(-edge))
        lines.append(f"| {dtype} | 2^{exponent} = {edge:.4g} | {share:.1%} |")
    return lines


def t5_adamw() -> list[str]:
    """Show c_t at the defaults, an AdamW that attains it, and what that does to the dead zone."""
    t, m, v = 1000, 0.0, 0.0
    for g in extremal_gradients(t).tolist():
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    attained = (m / (1 - 0.9**t)) / math.sqrt(v / (1 - 0.999**t))
    ratios = ", ".join(f"c_{n} = {adamw_ratio_upper_bound(n):.3f}" for n in (1, 2, 10, 100, t))
    edges = [frozen_magnitude("adamw", 1e-5, steps, "bfloat16") for steps in (1, 2000)]
    return [
        f"- {ratios}; the limit is {adamw_limit_ratio():.3f}.",
        f"- AdamW on the extremal gradients makes step {t} of size {attained:.3f} lr.",
        (
            f"- In bfloat16, moments included, at lr 1e-5 no gradients move a weight above {edges[0]:.4g} in the first step, "
            f"nor one above {edges[1]:.4g} in 2,000 steps."
        ),
    ]
