"""T5: how far one step of AdamW can move a weight, and many steps. The folk bound "at most lr" is false.

Takes a learning rate, the number of a step and the two decays; gives bounds of that step, and of the whole
displacement of a weight, both rounded up.

>>> round(adamw_step_upper_bound(lr=1e-5, t=1) / 1e-5, 6)
1.0
>>> round(adamw_limit_ratio(), 2)
7.27
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.claims import claim

U64 = 2.0**-53
RATIO_ROUNDINGS = 40  # of `ratios`, counted there, most of them through functions good to an ulp
STEPS_AT_MOST = 10**8  # an array of this length is 0.8 GB


@claim("T5", kind="exact", source="Cauchy-Schwarz; Loshchilov & Hutter 2019, alg. 2 (AdamW)")
def adamw_step_upper_bound(lr: float, t: int, beta1: float = 0.9, beta2: float = 0.999) -> float:
    """|step t| <= lr c_t, c_t = sqrt(1-b2^t)/(1-b1^t) (1-b1)/sqrt(1-b2) sqrt((1-r^t)/(1-r)), r = b1^2/b2.

    The step is lr m^_t / (sqrt(v^_t) + eps), bias-corrected, without the weight decay, for any gradients g_1 … g_t
    and any eps >= 0; attained at eps = 0 by `extremal_gradients`. c_1 = 1, and c_t never falls with t, as
    (1-r) c_t^2 (1-b2) / (1-b1)^2 = 1 - (sinh((d-a)t/2) / sinh((d+a)t/2))^2 with b2 = e^-2a and r = e^-2d. Gradients may hold a coupled weight decay or be clipped: the bound asks nothing of them; amsgrad only
    lowers the step. In real arithmetic: `rounded_states_ratio_upper_bound` covers states that are stored, and
    `stored_move_upper_bound` weights that are.

    Args:
        lr: learning rate, >= 0, in the units of the weight.
        t: number of the step, from 1.
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in (0, 1).

    Returns:
        The bound in the units of the weight, rounded up; inf where it overflows.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check_lr(lr)
    return float(np.nextafter(lr * adamw_ratio_upper_bound(t, beta1, beta2), np.inf))


def adamw_ratio_upper_bound(t: int, beta1: float = 0.9, beta2: float = 0.999) -> float:
    """Return c_t of `adamw_step_upper_bound`, rounded up: the largest |m^_t| / sqrt(v^_t).

    Raises:
        ValueError: an argument is out of its range.
    """
    check_betas(beta1, beta2)
    if t < 1:
        raise ValueError(f"t must be at least 1, got t={t!r}")
    return float(ratios(np.array([t]), beta1, beta2)[0])


@claim("T5", kind="exact", source="limit of c_t; geometric series")
def adamw_limit_ratio(beta1: float = 0.9, beta2: float = 0.999) -> float:
    """c_inf = (1-b1) / sqrt((1-b2)(1-b1^2/b2)), and inf where b1^2 >= b2: 7.27 at the defaults.

    The supremum too: (1-q)(1-p^2/q) <= (1-p)^2 for all p and q > 0, here p = b1^t and q = b2^t.

    Args:
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in (0, 1).

    Returns:
        The limit, rounded up.

    Raises:
        ValueError: an argument is out of its range.
    """
    check_betas(beta1, beta2)
    a, b = Fraction(beta1), Fraction(beta2)
    if a * a >= b:
        return math.inf
    square = float((1 - a) ** 2 / ((1 - b) * (1 - a * a / b)))  # rounded once
    return float(np.nextafter(np.sqrt(np.nextafter(square, np.inf)), np.inf))


def extremal_gradients(t: int, beta1: float = 0.9, beta2: float = 0.999) -> NDArray[Any]:
    """Return gradients g_i ~ (b1/b2)^(t-i) whose step t attains c_t at eps = 0; float64 (t,), the largest is 1.

    The case of equality of Cauchy-Schwarz: b1^(t-i) / sqrt(b2^(t-i)) ~ sqrt(b2^(t-i)) g_i.

    Raises:
        ValueError: an argument is out of its range.
    """
    check_betas(beta1, beta2)
    if t < 1:
        raise ValueError(f"t must be at least 1, got t={t!r}")
    age = np.arange(t - 1, -1, -1.0)
    quotient = beta1 / beta2
    return np.asarray(quotient**age if quotient <= 1 else (1 / quotient) ** (t - 1 - age))


@claim("T5", kind="exact", source="triangle inequality over steps; decoupled decay of AdamW")
def adamw_displacement_upper_bound(
    lr: float | Sequence[float],
    steps: int,
    beta1: float = 0.9,
    beta2: float = 0.999,
    weight_decay: float = 0.0,
    largest_weight: float = 0.0,
) -> float:
    """|w_T - w_0| <= sum_t lr_t c_t + (1 - prod_t (1 - lr_t lambda)) |w_0|, for 0 <= lr_t lambda <= 1.

    From w_t = (1 - lr_t lambda) w_{t-1} - step_t, in real arithmetic: of stored weights and moments, which can move
    up to twice as far, `stored_displacement_upper_bound` tells. Not attained for T > 1: no gradients are extremal at every step.

    Args:
        lr: learning rate, >= 0, or one for each step.
        steps: T, >= 0.
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
    check_betas(beta1, beta2)
    sizes = rates * ratios(np.arange(1, steps + 1), beta1, beta2)
    check_magnitude(largest_weight)
    drift = decay_share(rates, weight_decay) * largest_weight
    # a product and a correctly rounded sum of non-negative numbers; two products and a sum for the decay; underflow
    total = (math.fsum(sizes) + drift) * (1 + 8 * U64) + steps * 2.0**-1074
    return float(np.nextafter(total, np.inf))


def learning_rates(lr: float | Sequence[float], steps: int) -> NDArray[Any]:
    """Return one learning rate for each step, float64 (steps,).

    Raises:
        ValueError: steps is negative or absurd, a rate is negative or not finite, or a schedule has another length.
    """
    if not 0 <= steps <= STEPS_AT_MOST:
        raise ValueError(f"steps must be in [0, {STEPS_AT_MOST}], got steps={steps!r}")
    rates = np.asarray(lr, np.float64)
    if rates.ndim and rates.shape != (steps,):
        raise ValueError(f"lr must be a number or one for each of {steps} steps, got {rates.shape}")
    if not (np.isfinite(rates).all() and (rates >= 0).all()):
        raise ValueError(f"lr must be finite and not negative, got lr={lr!r}")
    return np.broadcast_to(rates, (steps,))


def decay_share(rates: NDArray[Any], weight_decay: float) -> float:
    """Return 1 - prod_t (1 - lr_t lambda), rounded up: the share of w_0 that decoupled weight decay takes away.

    Raises:
        ValueError: the decay is negative, or lr_t lambda exceeds 1.
    """
    products = rates * weight_decay
    if not (weight_decay >= 0 and (products <= 1).all()):
        raise ValueError(f"weight_decay must be in [0, 1 / lr], got weight_decay={weight_decay!r}")
    if (products == 1).any():
        return 1.0
    log_left = math.fsum(np.log1p(-products))
    # products, log1p, a sum, expm1; each has condition at most 1: sum_i x_i prod_{j != i} (1 - x_j) <= the share
    return min(1.0, -math.expm1(log_left) * (1 + 16 * U64))


def ratios(t: NDArray[Any], beta1: float, beta2: float) -> NDArray[Any]:
    """Return c_t for many t at once, float64, each rounded up.

    Works with exact 1 - b and 1 - r and with expm1, so that no difference cancels; each power then has a relative
    error of a few roundings, and t log r of them where r > 1.
    """
    return np.asarray(moment_ratios(t, beta1, beta2) * bias_corrections(t, beta1, beta2))


def moment_ratios(t: NDArray[Any], beta1: float, beta2: float) -> NDArray[Any]:
    """Return the largest |m_t| / sqrt(v_t), not bias-corrected: (1-b1)/sqrt(1-b2) sqrt((1-r^t)/(1-r)); rounded up."""
    a, b = Fraction(beta1), Fraction(beta2)
    return root_of_series(t, (1 - a) ** 2 / (1 - b), a * a / b)


def root_of_series(t: NDArray[Any], front: Fraction, r: Fraction) -> NDArray[Any]:
    """Return sqrt(front (1-r^t)/(1-r)) for many t >= 1, float64, each rounded up."""
    front_rounded, gap = float(front), float(1 - r)  # rounded once
    with np.errstate(over="ignore"):
        exponent = t * np.log1p(-gap) if gap < 1 else np.full(t.shape, -np.inf)
        series = -np.expm1(exponent) / gap if gap else t.astype(np.float64)
        value = np.sqrt(front_rounded * series)
    growth = np.where(exponent > 0, exponent, 0.0)
    return np.asarray(value * (1 + (RATIO_ROUNDINGS / 2 + 2 * growth) * U64))


def bias_corrections(t: NDArray[Any], beta1: float, beta2: float) -> NDArray[Any]:
    """Return sqrt(1-b2^t) / (1-b1^t), rounded up."""
    second = np.sqrt(-np.expm1(t * math.log(beta2)))
    first = -np.expm1(t * math.log(beta1)) if beta1 else np.ones(t.shape)
    return np.asarray(second / first * (1 + RATIO_ROUNDINGS / 2 * U64))


def check_betas(beta1: float, beta2: float) -> None:
    """Refuse decays that the bound does not cover; at beta2 = 0 no bound exists from the second step on.

    Raises:
        ValueError: beta1 is outside [0, 1) or beta2 outside (0, 1).
    """
    if not 0 <= beta1 < 1:
        raise ValueError(f"beta1 must be in [0, 1), got beta1={beta1!r}")
    if not 0 < beta2 < 1:
        raise ValueError(f"beta2 must be in (0, 1), got beta2={beta2!r}")


def _check_lr(lr: float) -> None:
    if not (math.isfinite(lr) and lr >= 0):
        raise ValueError(f"lr must be finite and not negative, got lr={lr!r}")


def check_magnitude(largest_weight: float) -> None:
    """Refuse a bound of a weight that is none.

    Raises:
        ValueError: it is negative or not finite.
    """
    if not (math.isfinite(largest_weight) and largest_weight >= 0):
        raise ValueError(f"largest_weight must be finite and not negative, got largest_weight={largest_weight!r}")
