"""The searches of k-quants, compiled: scales and minima bit for bit as `theory.formats.kquants` finds them.

Sums there run over the weights of a sub-block in their order, so within one nothing can be done side by side. Here sixty-four
sub-blocks are searched at once, one beside the other: weight j of all of them, then weight j + 1. What is added up for each stays
in its order, and the loops over sub-blocks become vectors.

In: weights, float32, sub-blocks one after another. Out, filled in: scales, and of Q4_K and Q5_K minima, float32, one a sub-block.

>>> scale, low = np.empty(1, np.float32), np.empty(1, np.float32)
>>> search_affine(np.linspace(-1, 1, 32, dtype=np.float32), np.float32(15), np.float32(-1), 21, scale, low)
>>> low
array([0.96881723], dtype=float32)
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated, assignment, unused-ignore"
# Compiled functions have types of their own, by what they are called with.

from __future__ import annotations

import numpy as np

from unforgotten.audit.kernel.compiled import compiled

TOGETHER = 64
"""Sub-blocks that are searched at once."""
WIDE, NARROW = 32, 16  # weights of a sub-block of Q4_K and Q5_K, and of Q3_K and Q6_K
SMALLEST = np.float32(1e-15)
ROUNDER = np.float32(12582912.0)  # added to a number it leaves the nearest integer in the low bits
KEPT, MIDDLE = np.int32(0x007FFFFF), np.int32(0x00400000)
PASSES = 5
ONE, ZERO, TENTH = np.float32(1), np.float32(0), np.float32(0.1)


@compiled()
def _turn(x, first, n, size, turned):
    """Put `n` sub-blocks from the one numbered `first` beside each other, and zeros where there are fewer than TOGETHER."""
    turned[:] = ZERO
    for k in range(n):
        for j in range(size):
            turned[j, k] = x[(first + k) * size + j]


@compiled()
def _affine_codes(x, inverse, low, top, shifted, bits, level):
    for j in range(WIDE):
        for k in range(TOGETHER):
            shifted[k] = inverse[k] * (x[j, k] - low[k]) + ROUNDER
        for k in range(TOGETHER):
            code = (bits[k] & KEPT) - MIDDLE
            level[j, k] = min(max(np.float32(code), ZERO), top)


@compiled()
def _affine_error(x, weight, scale, low, level, error):
    error[:] = ZERO
    for j in range(WIDE):
        for k in range(TOGETHER):
            difference = scale[k] * level[j, k] + low[k] - x[j, k]
            error[k] += weight[j, k] * (difference * difference)


@compiled()
def search_affine(weights, top, first_step, tried, scales, lows):
    """Find scales and minima of Q4_K and Q5_K, see `kquants.search_affine`.

    Args:
        weights: weights, float32 (32 m,).
        top: largest code, float32.
        first_step: what the first candidate adds to it, float32.
        tried: number of candidates.
        scales: scales, float32 (m,), filled in.
        lows: minus the minima, float32 (m,), filled in.
    """
    x, weight, level = (
        np.empty((WIDE, TOGETHER), np.float32),
        np.empty((WIDE, TOGETHER), np.float32),
        np.empty((WIDE, TOGETHER), np.float32),
    )
    own = np.empty((13, TOGETHER), np.float32)
    scale, low, high, error = own[0], own[1], own[2], own[3]
    inverse, new_scale, new_low, new_error = own[4], own[5], own[6], own[7]
    sum_w, sum_x, sum_l, sum_l2, sum_xl = own[8], own[9], own[10], own[11], own[12]
    better, flat = np.empty(TOGETHER, np.bool_), np.empty(TOGETHER, np.bool_)
    shifted = np.empty(TOGETHER, np.float32)
    bits = shifted.view(np.int32)
    for first in range(0, len(scales), TOGETHER):
        n = min(TOGETHER, len(scales) - first)
        _turn(weights, first, n, WIDE, x)
        sum_w[:], sum_x[:], error[:], low[:] = ZERO, ZERO, ZERO, ZERO
        high[:] = x[0]
        for j in range(WIDE):
            for k in range(TOGETHER):
                error[k] += x[j, k] * x[j, k]
                low[k] = min(low[k], x[j, k])
                high[k] = max(high[k], x[j, k])
        for k in range(TOGETHER):
            error[k] = np.sqrt(error[k] / np.float32(WIDE))
        for j in range(WIDE):
            for k in range(TOGETHER):
                weight[j, k] = error[k] + abs(x[j, k])
                sum_w[k] += weight[j, k]
                sum_x[k] += weight[j, k] * x[j, k]
        for k in range(TOGETHER):
            flat[k] = high[k] == low[k]
            inverse[k] = top / (high[k] - low[k])
            scale[k] = ONE / inverse[k]
        _affine_codes(x, inverse, low, top, shifted, bits, level)
        _affine_error(x, weight, scale, low, level, error)
        for i in range(tried):
            factor = first_step + TENTH * np.float32(i) + top
            for k in range(TOGETHER):
                inverse[k] = factor / (high[k] - low[k])
            _affine_codes(x, inverse, low, top, shifted, bits, level)
            sum_l[:], sum_l2[:], sum_xl[:] = ZERO, ZERO, ZERO
            for j in range(WIDE):
                for k in range(TOGETHER):
                    weighted = weight[j, k] * level[j, k]
                    sum_l[k] += weighted
                    sum_l2[k] += weighted * level[j, k]
                    sum_xl[k] += weighted * x[j, k]
            for k in range(TOGETHER):
                determinant = sum_w[k] * sum_l2[k] - sum_l[k] * sum_l[k]
                fitted = (sum_w[k] * sum_xl[k] - sum_x[k] * sum_l[k]) / determinant
                below = (sum_l2[k] * sum_x[k] - sum_l[k] * sum_xl[k]) / determinant
                alone = sum_xl[k] / sum_l2[k]
                new_scale[k] = alone if below > ZERO else fitted
                new_low[k] = ZERO if below > ZERO else below  # noqa: FURB136  # nan stays nan
                better[k] = determinant > ZERO
            _affine_error(x, weight, new_scale, new_low, level, new_error)
            for k in range(TOGETHER):
                won = better[k] & (new_error[k] < error[k])
                scale[k] = new_scale[k] if won else scale[k]
                low[k] = new_low[k] if won else low[k]
                error[k] = new_error[k] if won else error[k]
        for k in range(n):
            scales[first + k] = ZERO if flat[k] else scale[k]
            lows[first + k] = -low[k]


@compiled()
def _signed_codes(x, inverse, lowest, highest, shifted, bits, level):
    for j in range(NARROW):
        for k in range(TOGETHER):
            shifted[k] = inverse[k] * x[j, k] + ROUNDER
        for k in range(TOGETHER):
            code = (bits[k] & KEPT) - MIDDLE
            level[j, k] = min(max(np.float32(code), lowest), highest)


@compiled()
def _signed_sums(x, level, sum_lx, sum_l2):
    sum_lx[:], sum_l2[:] = ZERO, ZERO
    for j in range(NARROW):
        for k in range(TOGETHER):
            square = x[j, k] * x[j, k]
            sum_lx[k] += square * x[j, k] * level[j, k]
            sum_l2[k] += square * level[j, k] * level[j, k]


@compiled()
def _pivots(x, largest, pivot):
    """Fill in the first weight of largest magnitude, and what to divide by: 1 where that is next to nothing."""
    largest[:] = x[0]
    for j in range(1, NARROW):
        for k in range(TOGETHER):
            largest[k] = x[j, k] if abs(x[j, k]) > abs(largest[k]) else largest[k]
    for k in range(TOGETHER):
        pivot[k] = ONE if abs(largest[k]) < SMALLEST else largest[k]


@compiled()
def search_symmetric(weights, scales):
    """Find scales of Q6_K, see `kquants.search_symmetric`.

    Args:
        weights: weights, float32 (16 m,).
        scales: scales, float32 (m,), filled in.
    """
    x, level = np.empty((NARROW, TOGETHER), np.float32), np.empty((NARROW, TOGETHER), np.float32)
    largest, pivot, scale = (
        np.empty(TOGETHER, np.float32),
        np.empty(TOGETHER, np.float32),
        np.empty(TOGETHER, np.float32),
    )
    best, inverse, shifted = (
        np.empty(TOGETHER, np.float32),
        np.empty(TOGETHER, np.float32),
        np.empty(TOGETHER, np.float32),
    )
    sum_lx, sum_l2 = np.empty(TOGETHER, np.float32), np.empty(TOGETHER, np.float32)
    bits = shifted.view(np.int32)
    for first in range(0, len(scales), TOGETHER):
        n = min(TOGETHER, len(scales) - first)
        _turn(weights, first, n, NARROW, x)
        _pivots(x, largest, pivot)
        scale[:], best[:] = ZERO, ZERO
        for turn in range(19):
            i = 0 if turn == 0 else (turn - 10 if turn < 10 else turn - 9)  # 0 first, then -9 ... -1 and 1 ... 9
            factor = np.float32(32) + TENTH * np.float32(i)
            for k in range(TOGETHER):
                inverse[k] = -factor / pivot[k]
            _signed_codes(x, inverse, np.float32(-32), np.float32(31), shifted, bits, level)
            _signed_sums(x, level, sum_lx, sum_l2)
            for k in range(TOGETHER):
                fit = sum_lx[k] / sum_l2[k] if sum_l2[k] != ZERO else ZERO
                won = (i == 0) | ((sum_l2[k] > ZERO) & (sum_lx[k] * sum_lx[k] > best[k] * sum_l2[k]))
                scale[k] = fit if won else scale[k]
                best[k] = fit * sum_lx[k] if won else best[k]
        for k in range(n):
            scales[first + k] = ZERO if abs(largest[k]) < SMALLEST else scale[k]


@compiled()
def search_one_by_one(weights, scales):
    """Find scales of Q3_K, see `kquants.search_one_by_one`.

    Args:
        weights: weights, float32 (16 m,).
        scales: scales, float32 (m,), filled in.
    """
    x, level = np.empty((NARROW, TOGETHER), np.float32), np.empty((NARROW, TOGETHER), np.float32)
    largest, pivot, inverse, shifted = (
        np.empty(TOGETHER, np.float32),
        np.empty(TOGETHER, np.float32),
        np.empty(TOGETHER, np.float32),
        np.empty(TOGETHER, np.float32),
    )
    sum_lx, sum_l2 = np.empty(TOGETHER, np.float32), np.empty(TOGETHER, np.float32)
    rest_lx, rest_l2 = np.empty(TOGETHER, np.float32), np.empty(TOGETHER, np.float32)
    lowest, highest = np.float32(-4), np.float32(3)
    bits = shifted.view(np.int32)
    for first in range(0, len(scales), TOGETHER):
        n = min(TOGETHER, len(scales) - first)
        _turn(weights, first, n, NARROW, x)
        _pivots(x, largest, pivot)
        for k in range(TOGETHER):
            inverse[k] = lowest / pivot[k]
        _signed_codes(x, inverse, lowest, highest, shifted, bits, level)
        _signed_sums(x, level, sum_lx, sum_l2)
        for turn in range(PASSES * NARROW):
            j = turn % NARROW
            for k in range(TOGETHER):
                own, old = x[j, k], level[j, k]
                square = own * own
                rest_lx[k] = sum_lx[k] - square * own * old
                rest_l2[k] = sum_l2[k] - square * old * old
                shifted[k] = own * rest_l2[k] / rest_lx[k] + ROUNDER
            for k in range(TOGETHER):
                code = (bits[k] & KEPT) - MIDDLE
                new = min(max(np.float32(code), lowest), highest)
                own = x[j, k]
                square = own * own
                new_lx, new_l2 = rest_lx[k] + square * own * new, rest_l2[k] + square * new * new
                gain, loss = new_lx * new_lx * sum_l2[k], sum_lx[k] * sum_lx[k] * new_l2
                won = (rest_lx[k] > ZERO) & (new != level[j, k]) & (new_l2 > ZERO) & (gain > loss)
                level[j, k] = new if won else level[j, k]
                sum_lx[k] = new_lx if won else sum_lx[k]
                sum_l2[k] = new_l2 if won else sum_l2[k]
        for k in range(n):
            nothing = (abs(largest[k]) < SMALLEST) | (sum_l2[k] <= ZERO)
            scales[first + k] = ZERO if nothing else sum_lx[k] / sum_l2[k]
