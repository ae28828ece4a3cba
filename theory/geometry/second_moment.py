"""T21: how far AdamW moved a weight, from its second moment at a few steps: tighter than T5, which asks for nothing.

Takes the learning rates, the numbers of some steps and the second moments there, as torch keeps them in `exp_avg_sq`; gives a
bound of each weight's displacement.

>>> v = [1 - 0.999**t for t in (1, 20, 60, 230)]  # a gradient of 1 at each of 230 steps
>>> round(float(second_moment_displacement_upper_bound(1e-5, [1, 20, 60, 230], v)) / 230e-5, 2)
1.38
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unforgotten.theory.claims import claim
from unforgotten.theory.geometry.adamw import adamw_displacement_upper_bound, check_betas, learning_rates

U64 = 2.0**-53
U32 = 2.0**-24


@claim("T21", kind="exact", source="derived here; Jensen, Cauchy-Schwarz, 1 - y <= -log y, telescoped")
def second_moment_displacement_upper_bound(
    lr: float | Sequence[float],
    times: Sequence[int],
    second_moments: ArrayLike,
    beta1: float = 0.9,
    beta2: float = 0.999,
) -> NDArray[Any]:
    """|w_T - w_0|^2 <= (sum_t lr_t) sum_s K_s x_s; 0 <= x_s <= 1, and x_s sum to log(v_q / v_r) - (q - r) log b2 over r < s <= q at most.

    x_s = (1-b2) g_s^2 / v_s is the part of v_s that step s brought, so x_1 = 1 and x_s <= log(v_s / v_{s-1}) - log b2.
    By Jensen m^_t^2 <= sum_s a_ts g_s^2 with a_ts = (1-b1) b1^(t-s) / (1-b1^t), and v_t >= b2^(t-s) v_s, so
    lr_t m^_t^2 / v^_t summed over t is sum_s K_s x_s at most, with the explicit weights
    K_s = sum_{t>=s} lr_t a_ts (1-b2^t) / (1-b2) b2^(s-t). Where v is known at q and r alone, the largest K_s between take
    what there is. Before the first known step x_s <= 1 is all that is known.

    As `adamw_displacement_upper_bound` without weight decay, whose share adds to it: any gradients that have these
    second moments, any eps >= 0 (a step of 0 where v is 0), real arithmetic. States in float32 add their rounding, those
    in bfloat16 are not covered, nor is the rounding of the weight where it is stored.

    Args:
        lr: learning rate, >= 0, or one for each of the T steps.
        times: numbers of the steps at which v is known, ascending from 1 or later; the last is T.
        second_moments: v there, not bias-corrected, >= 0, (len(times),) or (len(times), n) for n weights.
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in (0, 1).

    Returns:
        The bounds in the units of the weight, () or (n,), rounded up; never above T5's.

    Raises:
        ValueError: an argument is out of its range, or v falls faster than beta2 allows.
    """
    at, v = _records(times, second_moments)
    rates = learning_rates(lr, at[-1])
    check_betas(beta1, beta2)
    weights = step_weights(rates, beta1, beta2)
    total = np.broadcast_to(np.where(v[0] > 0, math.fsum(weights[: at[0]]), 0.0), v.shape[1:])
    for i, (r, q) in enumerate(pairwise(at)):
        filled = np.concatenate([[0.0], np.cumsum(np.sort(weights[r:q])[::-1])])
        total = total + np.interp(_told(v[i], v[i + 1], q - r, beta2), np.arange(q - r + 1), filled)
    bound = np.sqrt(math.fsum(rates) * total) * (1 + (4 * at[-1] + 64) * U64)
    whole = adamw_displacement_upper_bound(lr, at[-1], beta1, beta2)
    return np.where(total == 0, 0.0, np.minimum(np.nextafter(bound, np.inf), whole))


def _records(times: Sequence[int], second_moments: ArrayLike) -> tuple[list[int], NDArray[Any]]:
    at, v = [int(t) for t in times], np.asarray(second_moments, np.float64)
    if not at or at[0] < 1 or any(a >= b for a, b in pairwise(at)) or at != list(times):
        raise ValueError(f"times must ascend from 1 or later, got times={list(times)!r}")
    if v.ndim not in (1, 2) or len(v) != len(at):
        raise ValueError(f"second_moments must be ({len(at)},) or ({len(at)}, n), got shape={v.shape}")
    if not (np.isfinite(v).all() and (v >= 0).all()):
        raise ValueError("second_moments must be finite and not negative, got another")
    return at, v


def step_weights(rates: NDArray[Any], beta1: float, beta2: float) -> NDArray[Any]:
    """Return K_1 … K_T of T21 for rates (T,); every term is positive and each step of the recursion rounds twice."""
    t = np.arange(1, len(rates) + 1)
    first = -np.expm1(t * math.log(beta1)) if beta1 else np.ones(t.shape)
    fresh = rates * (-np.expm1(t * math.log(beta2)) / (1 - beta2)) * ((1 - beta1) / first)
    ratio = beta1 / beta2
    return np.array(list(accumulate(fresh[::-1].tolist(), lambda later, now: now + ratio * later)))[::-1]


def _told(before: NDArray[Any], after: NDArray[Any], steps: int, beta2: float) -> NDArray[Any]:
    """Return log(v_q / v_r) - (q - r) log b2, rounded up, the most that the x_s between add up to; 0 where v_q is 0.

    Raises:
        ValueError: it is below 0 by more than states in float32 round.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(before), np.log(after)
        told = logs[1] - logs[0] - steps * math.log(beta2)
        told = told + 4 * U64 * (np.abs(logs[0]) + np.abs(logs[1]) + np.abs(told))
    told = np.where(after == 0, np.where(before == 0, 0.0, -np.inf), told)
    least = -8 * steps * U32
    if not (told >= least).all():
        raise ValueError(f"second_moments must not fall faster than beta2={beta2!r} allows, got one that does")
    return np.maximum(told, 0.0)
