"""T5 and T4 together: the largest step of an optimizer, by name, and which weights a storage format lets it move.

Takes the name of an optimizer, a learning rate and a number of steps; gives bounds of a step, and the size from which
on no weight moves. All are rounded up.

>>> round(largest_step("lion", lr=1e-4, t=10), 6)
0.0001
>>> frozen_magnitude("adamw", lr=1e-5, steps=1, dtype="bfloat16")
0.00390625
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from unforgotten.theory.claims import claim
from unforgotten.theory.geometry.adamw import adamw_step_upper_bound, check_betas, moment_ratios
from unforgotten.theory.geometry.dead_zone import SIGNIFICANT_BITS, check_dtype, frozen_exponent
from unforgotten.theory.geometry.stored_steps import FLOAT32_BITS, KERNEL, STATES, rounded_momentum, rounded_ratio

ROUNDINGS = 16  # at most, in each bound of this file that is not a root or a power
U64 = 2.0**-53
UNDERFLOW = 2.0**-1000  # more than products below the normal range lose, rank and scale included


@claim("T5", kind="exact", source="Cauchy-Schwarz; Kingma & Ba 2015, alg. 1 without line 9-10")
def adam_uncorrected_step_upper_bound(lr: float, t: int, beta1: float = 0.9, beta2: float = 0.999) -> float:
    """|step t| <= lr (1-b1)/sqrt(1-b2) sqrt((1-r^t)/(1-r)), r = b1^2/b2: Adam without bias correction.

    The first step is the largest share of all: 3.16 lr at the defaults, where the corrected one is lr; the limit is
    the same c_inf. Attained by the same extremal gradients. In real arithmetic, as all here but `largest_stored_step`
    and `frozen_magnitude`, which count the roundings of what is stored.

    Args:
        lr: learning rate, >= 0.
        t: number of the step, from 1.
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in (0, 1).

    Raises:
        ValueError: an argument is out of its range.
    """
    _check(lr=lr)
    _check_step(t)
    check_betas(beta1, beta2)
    return _up(lr * float(moment_ratios(np.array([t]), beta1, beta2)[0]))


@claim("T5", kind="exact", source="geometric series; torch.optim.SGD")
def sgd_step_upper_bound(
    lr: float, t: int, clip: float, momentum: float = 0.0, dampening: float = 0.0, nesterov: bool = False
) -> float:
    """|step t| <= lr clip b_t, b_1 = 1, b_t = momentum b_{t-1} + 1 - dampening; Nesterov: 1 + momentum b_t for b_t.

    At momentum 0 there is no buffer, dampening is ignored, and b_t = 1: torch steps by the gradient itself. For gradients with |g_i| <= clip entrywise, which a clipped norm implies; attained by equal gradients. A bound of
    the gradient is needed: without one a step of SGD has none. Coupled weight decay is part of the gradient: add
    lambda times the largest weight to `clip`, as it is added after clipping. In real arithmetic.

    Args:
        lr: learning rate, >= 0.
        t: number of the step, from 1.
        clip: bound of |g|, entrywise, >= 0.
        momentum: factor of the buffer, in [0, 1).
        dampening: share of a gradient that the buffer leaves out, in [0, 1]; 0 for the first gradient, as in torch.
        nesterov: whether to use Nesterov's step; needs dampening 0, as in torch. At momentum 0 it is the plain step.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check(lr=lr, clip=clip)
    _check_step(t)
    if not (0 <= momentum < 1 and 0 <= dampening <= 1):
        raise ValueError(f"momentum must be in [0, 1) and dampening in [0, 1], got {momentum!r} and {dampening!r}")
    if nesterov and dampening:
        raise ValueError(f"dampening must be 0 with nesterov, got dampening={dampening!r}")
    size = 1.0
    if momentum:
        rest = -math.expm1((t - 1) * math.log(momentum))
        size = momentum ** (t - 1) + (1 - dampening) * rest / (1 - momentum)
    return _up(lr * clip * (1 + momentum * size if nesterov else size))


@claim("T5", kind="exact", source="|sign| <= 1; Bernstein et al. 2018 (signSGD)")
def sign_step_upper_bound(lr: float, t: int) -> float:
    """|step t| <= lr: a sign, or a sign of a momentum (signSGD, Signum).

    Raises:
        ValueError: an argument is out of its range.
    """
    _check(lr=lr)
    _check_step(t)
    return lr


@claim("T5", kind="exact", source="|sign| <= 1; Chen et al. 2023, alg. 2 (Lion)")
def lion_step_upper_bound(lr: float, t: int) -> float:
    """|step t| <= lr, without the decoupled decay: Lion steps by sign(b1 m + (1-b1) g) whatever b1 and b2 are.

    Raises:
        ValueError: an argument is out of its range.
    """
    return sign_step_upper_bound(lr, t)


@claim("T5", kind="exact", source="decoupled decay, Loshchilov & Hutter 2019")
def decay_step_upper_bound(lr: float, weight_decay: float, largest_weight: float) -> float:
    """Decoupled weight decay moves a weight by lr lambda |w|, on top of the step and toward 0; rounded up.

    Args:
        lr: learning rate, >= 0.
        weight_decay: lambda, >= 0.
        largest_weight: bound of |w|, >= 0.

    Raises:
        ValueError: an argument is negative or not finite.
    """
    _check(lr=lr, weight_decay=weight_decay, largest_weight=largest_weight)
    return _up(lr * weight_decay * largest_weight)


@claim("T5", kind="exact", source="triangle inequality; Hu et al. 2022 (LoRA), eq. 3")
def lora_change_upper_bound(
    b_initial: float, a_initial: float, b_moved: float, a_moved: float, rank: int, scale: float = 1.0
) -> float:
    """|s (B'A' - BA)_ij| <= s rank (dB a + b dA + dB dA), for |B| <= b, |B' - B| <= dB, |A| <= a, |A' - A| <= dA.

    With B = 0 at the start it is the bound of s B'A' itself, s rank dB (a + dA). Attained where all entries of a
    factor are equal. In real arithmetic: factors and a merge that are stored are rounded once more each. So LoRA moves a merged weight by `rank * scale` times a product, not by lr per step.

    Args:
        b_initial: b, bound of the entries of B at the start; LoRA starts at 0.
        a_initial: a, bound of the entries of A at the start.
        b_moved: dB, bound of the displacement of each entry of B, as from `adamw_displacement_upper_bound`.
        a_moved: dA, the same for A; 0 where A is not trained.
        rank: inner dimension, >= 1.
        scale: s = lora_alpha / rank, or / sqrt(rank) in rsLoRA; >= 0.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check(b_initial=b_initial, a_initial=a_initial, b_moved=b_moved, a_moved=a_moved, scale=scale)
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got rank={rank!r}")
    return _up(scale * rank * (b_moved * a_initial + b_initial * a_moved + b_moved * a_moved))


STEP_UPPER_BOUNDS: Mapping[str, Callable[..., float]] = {
    "adamw": adamw_step_upper_bound,
    "adam": adamw_step_upper_bound,
    "adam-uncorrected": adam_uncorrected_step_upper_bound,
    "sgd": sgd_step_upper_bound,
    "sign-sgd": sign_step_upper_bound,
    "lion": lion_step_upper_bound,
}


def largest_step(optimizer: str, lr: float, t: int, **options: Any) -> float:
    """Return the largest size of step t of an optimizer without decoupled weight decay; no earlier step is larger.

    Args:
        optimizer: a key of `STEP_UPPER_BOUNDS`.
        lr: learning rate, >= 0; the largest of a schedule.
        t: number of the step, from 1.
        **options: `beta1` and `beta2` of Adam; `clip`, `momentum`, `dampening` and `nesterov` of SGD.

    Raises:
        ValueError: the optimizer is unknown or an argument is out of its range.
    """
    if optimizer not in STEP_UPPER_BOUNDS:
        known = ", ".join(sorted(STEP_UPPER_BOUNDS))
        raise ValueError(f"optimizer must be one of {known}, got optimizer={optimizer!r}")
    bound = STEP_UPPER_BOUNDS[optimizer]
    if optimizer == "sgd" and options.get("dampening"):
        # b_t falls or rises toward its limit, so one of the two ends is the largest
        return max(bound(lr, 1, **options), bound(lr, t, **options))
    return bound(lr, t, **options)


@claim("T5", kind="exact", source="the rounded recursions of `stored_steps`; torch.optim 2.x")
def largest_stored_step(optimizer: str, lr: float, t: int, states: str, **options: Any) -> float:
    """|step t| <= `largest_step` with what stored states add: c_t' for c_t of Adam, a momentum grown by (1+u)^2 of SGD.

    Sign and Lion add nothing but the rounding of lr to float32. No earlier step is larger.

    Args:
        optimizer: a key of `STEP_UPPER_BOUNDS`.
        lr: learning rate, >= 0; the largest of a schedule.
        t: number of the step, from 1.
        states: dtype of the optimizer's states, "float32" or "bfloat16".
        **options: options of the optimizer, as of `largest_step`.

    Raises:
        ValueError: an argument is out of its range, or the buffer of SGD can grow without end.
    """
    if states not in STATES:
        raise ValueError(f"states must be one of {', '.join(STATES)}, got states={states!r}")
    size, factor = largest_step(optimizer, lr, t, **options), 1.0
    if optimizer in ("adam", "adamw", "adam-uncorrected"):
        size = lr * rounded_ratio(t, states, corrected=optimizer != "adam-uncorrected", **options)
    elif options.get("momentum"):
        momentum, factor = rounded_momentum(options["momentum"], states)
        size = largest_step(optimizer, lr, t, **{**options, "momentum": momentum})
    return _up(size * factor * float(1 + KERNEL)) if size else 0.0


@claim("T4", kind="exact", source="T4 and T5; induction over steps")
def frozen_magnitude(
    optimizer: str,
    lr: float,
    steps: int,
    dtype: str,
    weight_decay: float = 0.0,
    *,
    states: str | None = None,
    **options: Any,
) -> float:
    """Every weight with |w| > 2^e never moves in `steps` steps, e = frozen_exponent(eta / (1 - lr lambda 2^(p+1))).

    eta = `largest_stored_step(optimizer, lr, steps)`, and a share 2^(p-24) more for a kernel that adds in float32
    before it rounds to p bits. Rounding to nearest, and no state underflows. Decoupled decay of a share lr lambda of w is lost by itself while
    lr lambda <= 2^-(p+1), whatever w is (bf16: 0.002), and inf is returned beyond. Holds whether a kernel rounds
    decay and step apart or once together; |w| = 2^e exactly can step toward 0, as T4 says. Weights below may move, and
    then stop at this size. AdamW in bfloat16 at lr 1e-5 is frozen for certain from 2^-8 after 1 step, from 2^-5 after
    2,000: the folk "never above 0.0039" takes each step to be at most lr.

    Args:
        optimizer: a key of `STEP_UPPER_BOUNDS`.
        lr: learning rate, > 0; the largest of a schedule.
        steps: number of steps, >= 1.
        dtype: storage of the weights, "float32", "float16" or "bfloat16", with p significant bits.
        weight_decay: decoupled lambda, >= 0.
        states: dtype of the optimizer's states, "float32" or "bfloat16"; None: that of the weights, as in torch, and
            float32 for shorter ones, of which second moments underflow.
        **options: options of the optimizer, as of `largest_step`.

    Raises:
        ValueError: an argument is out of its range.
    """
    check_dtype(dtype)
    eta = largest_stored_step(optimizer, lr, steps, states or (dtype if dtype in STATES else "float32"), **options)
    if eta and dtype != "float32":
        eta = _up(eta / (1 - 2.0 ** (SIGNIFICANT_BITS[dtype] - FLOAT32_BITS)))
    share = decay_step_upper_bound(lr, weight_decay, 1.0)
    if weight_decay and dtype != "float32":
        share += 2.0**-23  # a kernel holds 1 - lr lambda, and its product with w, in float32
    left = 1 - share * 2.0 ** (SIGNIFICANT_BITS[dtype] + 1)
    if left <= 0:
        return math.inf
    return math.ldexp(1.0, frozen_exponent(_up(eta / left) if weight_decay else eta, dtype))


def _up(value: float) -> float:
    return float(np.nextafter(value * (1 + ROUNDINGS * U64) + UNDERFLOW, np.inf))


def _check(**sizes: float) -> None:
    for name, value in sizes.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and not negative, got {name}={value!r}")


def _check_step(t: int) -> None:
    if t < 1:
        raise ValueError(f"t must be at least 1, got t={t!r}")
