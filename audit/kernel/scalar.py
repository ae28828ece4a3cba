"""The kernel of one weight after another: codes and values in float32 as in `theory.formats.reference`, sums in float64.

In: float32 weights of a pair, ends of blocks, their `rules.BlockGrids` before and after, a `rules.Rule`. Out: `counts`,
`sums` and `bins`, which are added to, see `slots`. Of bfloat16 or float32 weights also the census and the length of delta:

>>> squared_length(np.array([1, 2], np.float32), np.array([3, 2], np.float32))
4.0

No operation of a code or a value may be reordered or fused, so nothing here is compiled with fast-math but `_add_up`
and `squared_length`, which only add: there the terms are given, and their order within a piece is the compiler's,
fixed once the code is compiled.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated, assignment, unused-ignore"
# Compiled functions have types of their own, by what they are called with.

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from unforgotten.audit.kernel.compiled import compiled
from unforgotten.audit.kernel.slots import (
    ADAPTIVE,
    BINS,
    BY_COMPARISON,
    BY_ROUNDING,
    CHANGES,
    COUNTS,
    DOT,
    EXPECTED,
    FIXED,
    FLIPS,
    OVERFLOWS,
    SCALAR_TILE,
    SUMS,
    SURVIVING,
    VARIANCE,
)

LARGEST = np.float32(np.finfo(np.float32).max)
LARGEST64 = float(LARGEST)
SMALLEST_16, LARGEST_16, SUBNORMALS_16 = (np.float32(2.0**-14), np.float32(65504), np.float32(2.0**24))
ZERO = np.float32(0)


@compiled()
def find_first(x, ends, low, high, low_first):
    """Fill in whether the first weight of largest magnitude of each block is its smallest weight.

    Args:
        x: weights, float32, the blocks one after another.
        ends: ends of the blocks, int64.
        low: smallest weight of each block.
        high: largest weight of each block.
        low_first: answer for each block, bool, filled in.
    """
    start = 0
    for b in range(len(ends)):
        low_first[b] = -low[b] > high[b]
        if -low[b] == high[b]:
            i = start
            while x[i] != low[b] and x[i] != high[b]:
                i += 1
            low_first[b] = x[i] == low[b]
        start = ends[b]


@compiled()
def _encode(x, start, n, block, blocks, rule, ratio, code, value, unit_place):
    """Put codes, values and float64 code units of `n` weights of one block into the front of the last three arrays."""
    divide, usable, factor = blocks.divide[block], blocks.usable[block], blocks.factor[block]
    low, zero = blocks.low[block], blocks.zero[block]
    low64, zero64, factor64 = np.float64(low), np.float64(zero), np.float64(factor)
    if not usable:
        for i in range(n):
            ratio[i] = ZERO
            unit_place[i] = zero64
    elif divide:
        for i in range(n):
            r = (x[start + i] - low) / factor
            r = max(r, -LARGEST)
            ratio[i] = min(r, LARGEST)
            v = (np.float64(x[start + i]) - low64) / factor64
            v = max(v, -LARGEST64)
            v = min(v, LARGEST64)
            unit_place[i] = v + zero64
    else:
        for i in range(n):
            r = (x[start + i] - low) * factor
            r = max(r, -LARGEST)
            ratio[i] = min(r, LARGEST)
            v = (np.float64(x[start + i]) - low64) * factor64
            v = max(v, -LARGEST64)
            v = min(v, LARGEST64)
            unit_place[i] = v + zero64
    _round(ratio, n, zero, rule, code)
    scale, value_zero, value_low = (blocks.scale[block], blocks.value_zero[block], blocks.value_low[block])
    levels, unit = rule.levels, rule.unit
    if rule.kind == BY_ROUNDING:
        first = levels[0]
        for i in range(n):
            level = np.float32(code[i]) + first
            value[i] = (level - value_zero) * scale * unit + value_low
    else:
        for i in range(n):
            value[i] = (levels[code[i]] - value_zero) * scale * unit + value_low


@compiled()
def _round(ratio, n, zero, rule, code):
    t = rule.thresholds
    if rule.kind == BY_ROUNDING:
        first, last = rule.levels[0], rule.levels[-1]
        zero_first = rule.zero_first
        for i in range(n):
            number = np.rint(ratio[i] + zero) if zero_first else np.rint(ratio[i]) + zero
            number = max(number, first)
            number = min(number, last)
            code[i] = np.int32(number - first)
    elif rule.kind == BY_COMPARISON:
        for i in range(n):
            r = ratio[i]
            c = np.int32(r > t[0]) + np.int32(r > t[1]) + np.int32(r > t[2]) + np.int32(r > t[3])
            c += np.int32(r > t[4]) + np.int32(r > t[5]) + np.int32(r > t[6]) + np.int32(r > t[7])
            c += np.int32(r > t[8]) + np.int32(r > t[9]) + np.int32(r > t[10]) + np.int32(r > t[11])
            c += np.int32(r > t[12]) + np.int32(r > t[13]) + np.int32(r > t[14])
            code[i] = c
    else:
        order, shift, first, last = (ratio.view(np.int32), rule.shift, rule.first, len(rule.table) - 1)
        for i in range(n):
            bits = order[i]
            bits = -(bits & 0x7FFFFFFF) if bits < 0 else bits
            bucket = (bits >> shift) - first
            bucket = max(bucket, 0)
            bucket = min(bucket, last)
            c = rule.table[bucket]
            code[i] = c + np.int32(ratio[i] > t[c])


@compiled()
def _place(v, v_new, code, code_new, pinned, rule, n, probability):
    """Fill in the probabilities of T6, and return the number of flips."""
    top, flips = len(rule.levels) - 1, 0
    for i in range(n):
        shift = v_new[i] - v[i]
        p = abs(shift) * rule.inverse[code[i]]
        p = min(p, 1.0)
        outward = ((code[i] == 0) & (shift < 0)) | ((code[i] == top) & (shift > 0))
        p = 0.0 if outward else p
        flipped = code[i] != code_new[i]
        probability[i] = np.float64(flipped) if pinned[i] else p
        flips += flipped
    return flips


@compiled()
def _surviving(value, value_new, n, surviving):
    """Fill in D of each weight, and return the number of values that change."""
    changes = 0
    for i in range(n):
        surviving[i] = np.float64(value_new[i]) - np.float64(value[i])
        changes += value_new[i] != value[i]
    return changes


@compiled()
def _overflows(value, n):
    """Return how many values are no finite numbers."""
    found = 0
    for i in range(n):
        found += not abs(value[i]) <= LARGEST
    return found


@compiled(fastmath=True)
def _add_up(probability, surviving, delta, n, sums):
    """Add the sums over one tile to `sums`. Only terms that are finite numbers come here, and their order is free."""
    expected = variance = square = dot = 0.0
    for i in range(n):
        p, d = probability[i], surviving[i]
        expected += p
        variance += p * (1 - p)
        square += d * d
        dot += d * delta[i]
    sums[EXPECTED] += expected
    sums[VARIANCE] += variance
    sums[SURVIVING] += square
    sums[DOT] += dot


@compiled()
def _positions(v, code, delta, n, rule, bins):
    """Count the places of moved weights in their interior cells."""
    top = len(rule.levels) - 1
    for i in range(n):
        c = code[i]
        if c > 0 and c < top and delta[i] != 0:
            place = (v[i] - rule.lower[c]) / rule.width[c] * BINS
            bin_ = np.int64(place)
            bin_ = BINS - 1 if bin_ >= BINS else bin_
            bins[0 if place < 0 else bin_] += 1


@compiled()
def measure(x, y, ends, before, after, same_grid, pinned_low, pinned_high, rule, check, counts, sums, bins):
    """Measure one format over one piece: counts and sums of both grids, positions once.

    Args:
        x: weights before, float32.
        y: weights after, float32.
        ends: ends of the blocks, int64.
        before: grids (`BlockGrids`) fitted to `x`.
        after: grids (`BlockGrids`) fitted to `y`.
        same_grid: flags of the blocks that have the same grid before and after, bool.
        pinned_low: the lower of the two weights that set the grid of each block before, see `rules.pinned_weights`.
        pinned_high: the upper of those.
        rule: rule of the format.
        check: whether a value may overflow.
        counts: counts, int64 (2, 3), added to.
        sums: sums, float64 (2, 4), added to.
        bins: histogram of positions, int64 (BINS,), added to.
    """
    ratio = np.empty(SCALAR_TILE, np.float32)
    code, code_fixed, code_new = (
        np.empty(SCALAR_TILE, np.int32),
        np.empty(SCALAR_TILE, np.int32),
        np.empty(SCALAR_TILE, np.int32),
    )
    value, value_fixed, value_new = (
        np.empty(SCALAR_TILE, np.float32),
        np.empty(SCALAR_TILE, np.float32),
        np.empty(SCALAR_TILE, np.float32),
    )
    v, v_fixed, v_new = np.empty(SCALAR_TILE), np.empty(SCALAR_TILE), np.empty(SCALAR_TILE)
    probability, surviving, delta = np.empty(SCALAR_TILE), np.empty(SCALAR_TILE), np.empty(SCALAR_TILE)
    pinned = np.empty(SCALAR_TILE, np.bool_)
    found, tile = np.zeros(COUNTS, np.int64), np.zeros(SUMS)
    block, begin, total = 0, 0, len(x)
    while begin < total:
        n = min(SCALAR_TILE, total - begin)
        done, agree = 0, True
        while done < n:
            while ends[block] <= begin + done:
                block += 1
            m = min(ends[block] - begin, n) - done
            at = begin + done
            _encode(x, at, m, block, before, rule, ratio, code[done:], value[done:], v[done:])
            _encode(y, at, m, block, before, rule, ratio, code_fixed[done:], value_fixed[done:], v_fixed[done:])
            if same_grid[block]:
                for i in range(done, done + m):
                    code_new[i], value_new[i], v_new[i] = code_fixed[i], value_fixed[i], v_fixed[i]
            else:
                agree = False
                _encode(y, at, m, block, after, rule, ratio, code_new[done:], value_new[done:], v_new[done:])
            low, high = pinned_low[block], pinned_high[block]
            for i in range(m):
                w = x[at + i]
                pinned[done + i] = (w == low) | (w == high)
                delta[done + i] = np.float64(y[at + i]) - np.float64(w)
            done += m
        _positions(v, code, delta, n, rule, bins)
        for grid in (FIXED, ADAPTIVE):
            fixed = grid == FIXED
            if fixed or not agree:
                c, w, u = (code_fixed, value_fixed, v_fixed) if fixed else (code_new, value_new, v_new)
                found[FLIPS] = _place(v, u, code, c, pinned, rule, n, probability)
                found[CHANGES] = _surviving(value, w, n, surviving)
                found[OVERFLOWS] = _overflows(value, n) + _overflows(w, n) if check else 0
                tile[:] = 0
                _add_up(probability, surviving, delta, n, tile)
            for k in range(COUNTS):
                counts[grid, k] += found[k]
            for k in range(SUMS):
                sums[grid, k] += tile[k]
        begin += n


@compiled()
def take_census(x, y, lowest, highest, beyond, weights, moved):
    """Add to the counts of `weights.piece.Census`, of finite weights.

    Args:
        x: weights before, float32.
        y: weights after, float32.
        lowest: lowest binade.
        highest: highest binade.
        beyond: counts of new weights that bfloat16 does not hold, and that float16 does not, int64 (2,).
        weights: counts of weights by the binade before, int64.
        moved: counts of moved weights by the binade before, int64.
    """
    bits, bits_new = x.view(np.int32), y.view(np.int32)
    beyond_bfloat16, beyond_float16 = 0, 0
    for i in range(len(x)):
        exponent = ((bits[i] >> 23) & 255) - 127
        exponent = min(max(exponent, lowest), highest) - lowest
        weights[exponent] += 1
        moved[exponent] += x[i] != y[i]
    for i in range(len(x)):
        beyond_bfloat16 += (bits_new[i] & 0xFFFF) != 0
        magnitude = abs(y[i])
        fine = magnitude * SUBNORMALS_16
        subnormal = (magnitude < SMALLEST_16) & (fine == np.floor(fine))
        normal = (magnitude >= SMALLEST_16) & (magnitude <= LARGEST_16) & ((bits_new[i] & 0x1FFF) == 0)
        beyond_float16 += not (subnormal | normal)
    beyond[0] += beyond_bfloat16
    beyond[1] += beyond_float16


def float_of(stored):
    """Return a stored weight as float32, bfloat16 by its bits. This body is Python's, the next one compiled code's."""
    if isinstance(stored, np.integer):
        return (np.uint32(stored) << np.uint32(16)).view(np.float32)
    return stored


@overload(float_of)
def _float_of(stored):
    if isinstance(stored, types.Integer):
        return lambda stored: np.uint32(stored << 16).view(np.float32)
    return lambda stored: stored


@compiled(fastmath=True)
def squared_length(x, y):
    """Return the squared length of y - x, in float64; like `_add_up` free in the order of its terms."""
    square = 0.0
    for i in range(len(x)):
        delta = np.float64(float_of(y[i])) - np.float64(float_of(x[i]))
        square += delta * delta
    return square
