"""T5 for what a computer keeps: moments of AdamW in a storage dtype, and weights on the lattice of theirs.

Takes a learning rate, the number of a step and the dtypes; gives bounds of the step that the kernel computes, and of how
far the stored weight moves. Both are rounded up.

>>> round(rounded_states_ratio_upper_bound(1, "bfloat16"), 3)
1.018
>>> round(stored_move_upper_bound(1.0, "float32"), 6)
2.0
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.claims import claim
from unforgotten.theory.geometry.adamw import (
    U64,
    bias_corrections,
    check_betas,
    check_magnitude,
    decay_share,
    learning_rates,
    root_of_series,
)
from unforgotten.theory.geometry.dead_zone import SIGNIFICANT_BITS

STATES = ("float32", "bfloat16")
"""Dtypes of moments that have a bound: v of float16 underflows at gradients of 1e-2, and then a step has none."""
KERNEL = Fraction(1, 2**20)  # 16 roundings to float32 inside one operation of a kernel, at most
FLOAT32_BITS = 24
HALF_ULP_OF_1 = 2.0**-25  # of float32, just below 1


@claim("T5", kind="exact", source="Cauchy-Schwarz on the rounded recursions; operations of torch.optim.AdamW 2.x")
def rounded_states_ratio_upper_bound(t: int, states: str, beta1: float = 0.9, beta2: float = 0.999) -> float:
    """|step t| <= lr c_t', c_t with b1 (1+u) for b1, b2 (1-u)^2 for b2 in the series, times (1+u) / (1-u)^3.5, u = 2^-p.

    m is rounded once a step and v twice, to p significant bits, and so are the root of v, its quotient by the bias
    correction, and its sum with eps. Each rounding is a factor in [1-u, 1+u]: m grows at most, v shrinks at most, and
    Cauchy-Schwarz gives the bound as before. A v that sticks is covered. Bias corrections are computed in float64, as
    torch does; inside an operation float32 may round 16 times more. bfloat16 adds 2 % at t = 1 and 5 % in the limit
    of the defaults. c_t' never falls with t.

    Assumes that no state, no square and no root underflows, or that m does where v does.

    Args:
        t: number of the step, from 1.
        states: dtype of the moments, "float32" or "bfloat16".
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in (0, 1).

    Returns:
        The bound in units of lr, rounded up.

    Raises:
        ValueError: an argument is out of its range.
    """
    return rounded_ratio(t, states, beta1, beta2, corrected=True)


@claim("T5", kind="exact", source="the nearest lattice point to w - u is no farther from it than w")
def stored_move_upper_bound(step: float, dtype: str) -> float:
    """|round(w - u) - w| <= 2 |u| for a stored w, whatever lattice: rounding to nearest at most doubles a step.

    w lies on the lattice, so w - u is rounded to a point at most |u| away. Reached in the limit of steps just above
    half a gap. A kernel that adds in float32 before it rounds to p < 24 bits: 2 |u| / (1 - 2^(p-23)), as float32's
    rounding is at most 2^(p-23) of any distance that leads to another point. Stochastic rounding can move by a whole
    gap more than |u|, and is not covered.

    Args:
        step: bound of |u|, >= 0.
        dtype: dtype of the weights, a key of `SIGNIFICANT_BITS`.

    Raises:
        ValueError: the step is negative or not finite, or the dtype is unknown.
    """
    if not (math.isfinite(step) and step >= 0):
        raise ValueError(f"step must be finite and not negative, got step={step!r}")
    return float(np.nextafter(step * _doubling(dtype), np.inf)) if step else 0.0


@claim("T5", kind="exact", source="triangle inequality over stored steps; rounding is monotone")
def stored_displacement_upper_bound(
    lr: float | Sequence[float],
    steps: int,
    dtype: str,
    *,
    states: str | None = None,
    beta1: float = 0.9,
    beta2: float = 0.999,
    weight_decay: float = 0.0,
    largest_weight: float = 0.0,
) -> float:
    """|w_T - w_0| <= S_T + k sum_t x_t (|w_0| + S_{t-1}), S_t = sum_{i<=t} k lr_i c_i', for stored weights.

    k lr c' is `stored_move_upper_bound` of a step with stored moments (k = 2 in float32, 2.0001 in bfloat16). The decay
    moves a stored weight toward 0 and never across it, by at most k x |w|, whether it is rounded apart or with the
    step; x = lr lambda + 2^-25, as a kernel holds 1 - lr lambda in float32, and 0 without decay. Rounding to nearest
    only.

    Args:
        lr: learning rate, >= 0, or one for each step.
        steps: T, >= 0.
        dtype: dtype of the weights, "float32" or "bfloat16".
        states: dtype of the moments; None: that of the weights, as in torch.
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in (0, 1).
        weight_decay: lambda, >= 0, with lr lambda <= 1.
        largest_weight: an upper bound of |w_0|, >= 0.

    Returns:
        The bound in the units of the weight, rounded up.

    Raises:
        ValueError: an argument is out of its range.
    """
    rates = learning_rates(lr, steps)
    decay_share(rates, weight_decay)  # refuses what is out of range
    check_magnitude(largest_weight)
    number = np.arange(1, steps + 1)
    sizes = _doubling(dtype) * rates * _ratios(number, states or dtype, beta1, beta2, corrected=True)
    before = np.concatenate([[0.0], np.cumsum(sizes)[:-1]]) if steps else sizes
    shares = np.where(rates * weight_decay > 0, rates * weight_decay + HALF_ULP_OF_1, 0.0)
    drift = _doubling(dtype) * math.fsum(shares * (largest_weight + before))
    # sums of non-negative numbers: a relative error of one rounding a term of the running sum, and 8 more
    total = (math.fsum(sizes) + drift) * (1 + (steps + 8) * U64) + steps * 2.0**-1073
    return float(np.nextafter(total, np.inf))


def rounded_ratio(t: int, states: str, beta1: float = 0.9, beta2: float = 0.999, *, corrected: bool) -> float:
    """Return c_t' of `rounded_states_ratio_upper_bound`, with or without bias correction; rounded up.

    Raises:
        ValueError: an argument is out of its range.
    """
    if t < 1:
        raise ValueError(f"t must be at least 1, got t={t!r}")
    return float(_ratios(np.array([t]), states, beta1, beta2, corrected=corrected)[0])


def rounded_momentum(momentum: float, states: str) -> tuple[float, float]:
    """Return the momentum and the factor of a step with which a stored buffer of SGD is bounded; both rounded up.

    The buffer is multiplied and added to, each rounded: |b_t| <= (momentum f |b| + (1 - dampening) |g|) f with
    f = (1+u)(1+k), so its sum has momentum f^2 for momentum and one f more, and Nesterov's sum another.

    Raises:
        ValueError: the states have no bound, or the buffer can grow without end.
    """
    factor = ((1 + _unit(states)) * (1 + KERNEL)) ** 2
    grown = float(np.nextafter(float(Fraction(momentum) * factor), np.inf)) if momentum else 0.0
    if grown >= 1:
        raise ValueError(f"momentum must be below {float(1 / factor):.6g} with states in {states}, got {momentum!r}")
    return grown, float(factor) * (1 + 2 * U64)


def _unit(states: str) -> Fraction:
    """Return u = 2^-p, the largest relative error of one rounding."""
    if states not in STATES:
        raise ValueError(f"states must be one of {', '.join(STATES)}, got states={states!r}")
    return Fraction(1, 2 ** SIGNIFICANT_BITS[states])


def _ratios(t: NDArray[Any], states: str, beta1: float, beta2: float, *, corrected: bool) -> NDArray[Any]:
    """Return c_t' for many t, each rounded up."""
    check_betas(beta1, beta2)
    a, b = Fraction(beta1), Fraction(beta2)
    more, less = (1 + _unit(states)) * (1 + KERNEL), (1 - _unit(states)) * (1 - KERNEL)
    # the denominator is rounded three times, and m / denominator times lr once, in the kernel
    front = ((1 - a) * more) ** 2 / ((1 - b) * less) / less**6 * (1 + KERNEL) ** 2
    root = root_of_series(t, front, (a * more) ** 2 / (b * less**2))
    return np.asarray(root * bias_corrections(t, beta1, beta2) if corrected else root)


def _doubling(dtype: str) -> float:
    if dtype not in SIGNIFICANT_BITS:
        raise ValueError(f"dtype must be one of {', '.join(SIGNIFICANT_BITS)}, got dtype={dtype!r}")
    bits = SIGNIFICANT_BITS[dtype]
    return 2.0 if bits >= FLOAT32_BITS else 2.0 / (1 - 2.0 ** (bits - FLOAT32_BITS + 1)) * (1 + 4 * U64)
