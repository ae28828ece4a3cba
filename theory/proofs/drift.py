"""T2 over the reals: how far a scale drifts, when a code cannot flip, and what moves although no code does."""

# pyright: reportOperatorIssue=false
# z3 declares unions of every kind of expression, and sums of those that have no sum.
from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import z3

from unforgotten.theory.claims import proof
from unforgotten.theory.formats.names import Format
from unforgotten.theory.geometry.drift import drift_factor, unflipped_update_upper_bound
from unforgotten.theory.proofs.geometry import BLOCK_SIZES, every_format
from unforgotten.theory.proofs.smt import Statement, largest, prove, reals, size

LINEAR = ("quotient", "float32")
ONE = np.ones(1)


def _absmax(xs: list[Any]) -> Any:
    return largest([size(x) for x in xs])


def _range(xs: list[Any]) -> Any:
    zero = z3.RealVal(0)
    return largest([zero, *xs]) + largest([zero, *(-x for x in xs)])


def absmax_statement(block: int, *, factor: Fraction = Fraction(1)) -> Statement:
    """State that |max|w'| - max|w|| <= max|delta|."""
    return _drift(block, _absmax, factor)


def range_statement(block: int, *, factor: Fraction = Fraction(2)) -> Statement:
    """State that |range' - range| <= 2 max|delta|, the range being widened to contain 0."""
    return _drift(block, _range, factor)


def _drift(block: int, statistic: Any, factor: Fraction) -> Statement:
    w, delta = reals("w", block), reals("delta", block)
    w_new = [x + d for x, d in zip(w, delta, strict=True)]
    bound = z3.Q(factor.numerator, factor.denominator) * _absmax(delta)
    return Statement((), size(statistic(w_new) - statistic(w)) <= bound)


def divided_statement() -> Statement:
    """State that a drift of the statistic by at most m is a drift of the scale by at most m / divisor."""
    old, new, m, divisor = z3.Reals("old new m divisor")
    given = (divisor > 0, size(new - old) <= m)
    return Statement(given, size(new / divisor - old / divisor) <= m / divisor)


@proof("T2", method="smt", domain="absmax scales, blocks of 1 to 4, any divisor")
def absmax_scale_drift() -> None:
    """|s' - s| <= max|delta| / c for s = max|w| / c."""
    prove(*(absmax_statement(n) for n in BLOCK_SIZES), divided_statement())


@proof("T2", method="smt", domain="scales from a range that contains 0, blocks of 1 to 4, any divisor")
def range_scale_drift() -> None:
    """|s' - s| <= 2 max|delta| / c for s = (max(w, 0) - min(w, 0)) / c; with 1 in place of 2 it is false."""
    prove(*(range_statement(n) for n in BLOCK_SIZES), divided_statement())


def no_flip_statement(*, strict: bool = True, with_drift: bool = True) -> Statement:
    """State that |delta| + |v| |s' - s| < s' |v - t|, with v = w/s, keeps v' = w'/s' on the side of t where v is."""
    s, s_new, w, delta, t = z3.Reals("s s_new w delta t")
    v, v_new = w / s, (w + delta) / s_new
    moved = size(delta) + (size(v) * size(s_new - s) if with_drift else 0)
    room = s_new * size(v - t)
    condition = moved < room if strict else moved <= room
    same_side = z3.And((v < t) == (v_new < t), (v <= t) == (v_new <= t))
    return Statement((s > 0, s_new > 0, condition), same_side)


@proof("T2", method="smt", domain="any threshold and any positive scales, so any block and codebook")
def no_flip_condition() -> None:
    """|delta_i| + |w_i/s| |s' - s| < s' dist(w_i/s, thresholds) leaves w_i on its side of every threshold."""
    prove(no_flip_statement())


def value_statement(*, factor: Fraction = Fraction(1)) -> Statement:
    """State that |l (S' - S)| <= k factor max|delta| for a level |l| <= k per unit of the statistic S."""
    level, k, old, new, m = z3.Reals("level k old new m")
    bound = z3.Q(factor.numerator, factor.denominator) * m
    given = (size(level) <= k, size(new - old) <= m)
    return Statement(given, size(level * new - level * old) <= k * bound)


def value_factor(fmt: Format) -> Fraction:
    """Return the least k with |D_i| <= k max|delta| where no code and no zero point of the block changes, exact.

    The largest value that a format can hold per unit of its statistic, times the number of ends of the statistic.
    """
    low, high = Fraction(fmt.levels[0]), Fraction(fmt.levels[-1])
    top = high - low if fmt.zero_point else max(-low, high)
    stored = Fraction(1) if fmt.arithmetic == "multiply" else Fraction(fmt.divisor)
    return top * Fraction(float(np.float32(fmt.unit))) / stored * drift_factor(fmt)


def drifting_formats() -> Iterator[Format]:
    """Yield the formats whose scale is absmax or range over a number, once rounded: T2 has no bound for the others."""
    for fmt in every_format():
        if fmt.statistic in ("absmax", "range") and (fmt.scale_rule, fmt.storage) == LINEAR:
            yield fmt


@proof("T2", method="smt", domain="every level and every statistic that drifts by at most m")
def value_drift() -> None:
    """D_i = l (S' - S), so |D_i| <= k max|delta|, k being the largest value per unit of the statistic S."""
    prove(value_statement())


@proof("T2", method="exact", domain="every format whose scale is proportional to absmax or range, 2 to 8 bits")
def value_factors() -> None:
    """|D_i| <= k max|delta| where no code and no zero point changes: k = 1 for absmax, 2 for a range, 2^b/(2^b - 1) for ct.

    The code's own bound is at least k and at most 2^-20 larger.
    """
    for fmt in drifting_formats():
        factor, bound = value_factor(fmt), Fraction(unflipped_update_upper_bound(ONE, fmt).item())
        assert factor <= bound <= factor * (1 + Fraction(1, 2**20)), f"{fmt.name}: {factor}"
        half_step = fmt.zero == "none" and fmt.divisor % 1 != 0
        stated = Fraction(2**fmt.bits, 2**fmt.bits - 1) if half_step else drift_factor(fmt)
        assert factor <= stated, f"{fmt.name}: {factor}"
