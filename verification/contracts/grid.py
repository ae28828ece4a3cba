"""Contracts of a quantizer that claims its levels: where on the exact grid of its block a weight must land.

Takes a described quantizer and weights (rows, columns); gives a `Counterexample`, or None where the contract holds.
A `Rule` judges one block on its exact grid, and `on_the_grid` makes a contract of it.

>>> from unforgotten.verification.contracts.libraries import reference
>>> on_the_grid(nearest_level)(reference("int4-g32"), np.ones((1, 32), np.float32)) is None
True
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.verification.contracts.base import Contract, Counterexample, blocks, coded, number, place, quantized
from unforgotten.verification.contracts.described import Quantizer
from unforgotten.verification.contracts.ideal import TIES, Ideal, ends, ideals, slack, statistic, tied

Array = NDArray[Any]


class Judgement(NamedTuple):
    """Of every weight of a block: the value it should have, and whether the value it has will do."""

    expected: Array
    fine: Array


Rule = Callable[[Ideal, Array, Array, float], Judgement]  # grid, weights, values, slack


def _nearest(ideal: Ideal, w: Array) -> Array:
    """Return the index of a level nearest to each weight."""
    return np.abs(w[:, None] - ideal.values[None, :]).argmin(axis=1)


def half_a_step(ideal: Ideal, w: Array, got: Array, allowed: float) -> Judgement:
    """Judge |Q(w) - w|: at most half the distance of the levels around w; beyond the last level, the distance to it."""
    expected = ideal.values[_nearest(ideal, w)]
    values = np.sort(ideal.values)
    above = np.clip(np.searchsorted(values, w), 1, len(values) - 1)
    half = (values[above] - values[above - 1]) / 2
    bound = np.maximum(half, np.abs(w - np.clip(w, values[0], values[-1])))
    return Judgement(expected, np.abs(got - w) <= bound + allowed)


def nearest_level(ideal: Ideal, w: Array, got: Array, allowed: float) -> Judgement:
    """Judge whether Q(w) is a nearest level; near a threshold both neighbours are nearest, up to rounding."""
    values = ideal.values
    distance = np.abs(w[:, None] - values[None, :])
    candidates = distance <= distance.min(axis=1, keepdims=True) + 2 * allowed
    on_level = np.abs(got[:, None] - values[None, :]) <= allowed
    fine = (candidates & on_level).any(axis=1)
    return Judgement(values[distance.argmin(axis=1)], fine)


def end_levels(ideal: Ideal, w: Array, got: Array, allowed: float) -> Judgement:
    """Give the last level on either side to all that is nearest to it: an end cell is not cut off."""
    values = np.sort(ideal.values)
    top = w > (values[-1] + values[-2]) / 2 + allowed
    bottom = w < (values[0] + values[1]) / 2 - allowed
    expected = np.where(top, values[-1], np.where(bottom, values[0], got))
    return Judgement(expected, np.abs(got - expected) <= allowed)


def ties(rule: str) -> Rule:
    """Return the rule that a weight halfway between two levels goes where `rule` says, where the step is 2^k."""

    def judge(ideal: Ideal, w: Array, got: Array, allowed: float) -> Judgement:
        below = tied(ideal, w)
        upper = np.array([k >= 0 and TIES[rule][1](ideal, int(k)) for k in below])
        expected = np.where(below >= 0, ideal.values[below + upper], got)
        return Judgement(expected, np.abs(got - expected) <= allowed)

    return judge


def on_the_grid(rule: Rule, *, readable: bool = True) -> Callable[[Quantizer, Array], Counterexample | None]:
    """Return the check that every block obeys a rule on its exact grid, or on one of a few with the zero point unsure.

    Args:
        rule: rule that a block must obey.
        readable: leave out blocks whose statistic is under the claimed floor.
    """

    def check(q: Quantizer, w: Array) -> Counterexample | None:
        got = quantized(q, w).astype(np.float64).ravel()
        for block, x in _blocks_of(q, w):
            grids = ideals(q, x)
            if readable and not grids[0].readable:
                continue
            judged = [rule(grid, x, got[block], slack(q, x)) for grid in grids]
            if not any(j.fine.all() for j in judged):
                i = int(np.flatnonzero(~judged[0].fine)[0])
                value = got[block][i]
                return _off(w, int(block[i]), float(judged[0].expected[i]), float(value), grids[0])
        return None

    return check


def _blocks_of(q: Quantizer, w: Array) -> Iterator[tuple[Array, Array]]:
    for block in blocks(q, w.shape):
        yield block, w.ravel()[block].astype(np.float64)


def _off(w: Array, index: int, expected: float, got: float, ideal: Ideal) -> Counterexample:
    words = (
        f"weight {number(w.ravel()[index])} at step {number(abs(ideal.step))} must become "
        f"{number(expected)}, got {number(got)}"
    )
    return Counterexample(w, place(w, index), words)


def codes_are_indices(q: Quantizer, w: Array) -> Counterexample | None:
    """Check that the code of a weight is the index of the level that is its value."""
    got, codes = quantized(q, w).astype(np.float64).ravel(), coded(q, w).ravel()
    count = len(q.levels or ())
    for block, x in _blocks_of(q, w):
        grids = ideals(q, x)
        inside = (codes[block] >= 0) & (codes[block] < count)
        named = [grid.values[np.clip(codes[block], 0, count - 1)] for grid in grids]
        fines = [inside & (np.abs(values - got[block]) <= slack(q, x)) for values in named]
        if grids[0].readable and not any(fine.all() for fine in fines):
            i = int(block[np.flatnonzero(~fines[0])[0]])
            weight, value = number(w.ravel()[i]), number(got[i])
            words = f"weight {weight} must have the code of its value {value}, got code {codes[i]}"
            return Counterexample(w, place(w, i), words)
    return None


def cells_are_constant(q: Quantizer, w: Array) -> Counterexample | None:
    """Check that weights moved half of the way to their values, but for those that set the grid, keep their values."""
    got = quantized(q, w)
    moved = w.copy()
    for block, x in _blocks_of(q, w):
        if _resolved(q, x):
            sets = (x == x.min()) | (x == x.max()) | (np.abs(x) == np.abs(x).max())
            nearer = np.clip((x + got.ravel()[block]) / 2, x.min(), x.max())
            moved.ravel()[block] = np.where(sets, x, nearer).astype(np.float32)
    after = quantized(q, moved)
    for i in np.flatnonzero(got.ravel() != after.ravel()):
        weight, value, other = (number(a.ravel()[i]) for a in (moved, got, after))
        words = f"weight {weight} must become {value} as {number(w.ravel()[i])} does, got {other}"
        return Counterexample(moved, place(w, int(i)), words)
    return None


def requantizing_changes_nothing(q: Quantizer, w: Array) -> Counterexample | None:
    """Check that Q(Q(w)) = Q(w) where Q(w) has the ends that set the grid of w. Elsewhere the grid shrinks."""
    once = quantized(q, w).astype(np.float32)
    twice = quantized(q, once)
    for block, x in _blocks_of(q, w):
        y, allowed = once.ravel()[block].astype(np.float64), slack(q, x)
        if not (_resolved(q, x) and _same_ends(q, x, y, allowed)):
            continue
        change = np.abs(twice.ravel()[block].astype(np.float64) - y)
        wrong = np.flatnonzero(change > (0.0 if q.idempotent == "exact" else 2 * allowed))
        if wrong.size:
            i = int(block[wrong[0]])
            value, again = number(once.ravel()[i]), number(twice.ravel()[i])
            words = f"the value {value} must stay when it is quantized again, got {again}"
            return Counterexample(once, place(w, i), words)
    return None


def _resolved(q: Quantizer, w: Array) -> bool:
    """Tell whether rounding is so much finer than the grid that a value lies well inside its own cell."""
    grid = ideals(q, w)[0]
    return grid.readable and 4 * slack(q, w) < grid.gap / 2


def _same_ends(q: Quantizer, x: Array, y: Array, allowed: float) -> bool:
    pairs = [*zip(ends(q, x), ends(q, y), strict=True), (statistic(q, x), statistic(q, y))]
    return all(abs(a - b) <= allowed for a, b in pairs)


def _claims_levels(q: Quantizer) -> bool:
    return q.levels is not None and q.block is not None


LEVELS = "block, levels and statistic"
GRID: Mapping[str, Contract] = {
    "end levels are used": Contract(
        "the largest and smallest weights of a block take the level nearest to them: no end cell is cut off",
        on_the_grid(end_levels),
        _claims_levels,
        LEVELS,
    ),
    "the error is at most half a step": Contract(
        "|Q(w) - w| <= step / 2, and the rounding of float32",
        on_the_grid(half_a_step, readable=False),
        _claims_levels,
        LEVELS,
    ),
    **{
        f"ties go {words}": Contract(
            f"a weight halfway between two levels goes {words}",
            on_the_grid(ties(rule)),
            lambda q, rule=rule: _claims_levels(q) and q.ties == rule,  # type: ignore[misc]
            f"{LEVELS}, ties={rule!r}",
            weights="ties",
        )
        for rule, (words, _) in TIES.items()
    },
    "the nearest level is taken": Contract(
        "every value is the level nearest to its weight", on_the_grid(nearest_level), _claims_levels, LEVELS
    ),
    "the code is the index of the value's level": Contract(
        "level number code is the value",
        codes_are_indices,
        lambda q: _claims_levels(q) and q.codes is not None,
        f"codes, {LEVELS}",
    ),
    "cells are constant": Contract(
        "a weight may move inside its cell without changing a value",
        cells_are_constant,
        _claims_levels,
        LEVELS,
        weights="normal",
    ),
    "requantizing changes nothing": Contract(
        "Q(Q(w)) = Q(w) in every block that keeps the ends which set its grid",
        requantizing_changes_nothing,
        lambda q: _claims_levels(q) and q.idempotent is not None,
        f"idempotent, {LEVELS}",
        weights="normal",
    ),
}
