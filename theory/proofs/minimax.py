"""T22: every monotone quantizer on a few places one by one, z3 on laws of a few levels, entropies by SymPy."""

# pyright: reportOperatorIssue=false
# z3 declares unions of every kind of expression, and sums of those that have no sum.
from __future__ import annotations

from fractions import Fraction
from itertools import combinations_with_replacement

import sympy as sp
import z3

from unforgotten.theory.claims import proof
from unforgotten.theory.laws.minimax import (
    code_information_upper_bound,
    flip_probability_upper_bound,
    unbiased_variance_lower_bound,
)
from unforgotten.theory.proofs.smt import Statement, prove, reals

PLACES = 8


@proof("T22", method="exhaustive", domain="8 places, 1 to 4 levels, every monotone rule and every shift")
def monotone_rules_flip_seldom() -> None:
    """Of N places at most (K - 1) |shift| have another code after a shift; spread thresholds attain it."""
    for levels in range(1, 5):
        attained = set()
        for cuts in combinations_with_replacement(range(-PLACES, 2 * PLACES + 1), levels - 1):
            for shift in range(-PLACES, PLACES + 1):
                flips = sum(sum(w >= c for c in cuts) != sum(w + shift >= c for c in cuts) for w in range(PLACES))
                assert flips <= (levels - 1) * abs(shift), f"cuts={cuts}, shift={shift}"
                if flips == (levels - 1) * abs(shift):
                    attained.add(shift)
        assert {-1, 0, 1} <= attained
    bound = Fraction(float(flip_probability_upper_bound(-1.0, levels=4, length=8.0)))
    assert Fraction(3, 8) <= bound <= Fraction(3, 8) * (1 + Fraction(1, 2**49))


def variance_statement(levels: tuple[int, ...], gap: int, *, factor: int = 1) -> Statement:
    """State that E X^2 - x^2 >= (x - l)(u - x) for a law on the levels with mean x between two neighbours l and u."""
    p = reals("p", len(levels))
    mean = z3.Sum([a * k for a, k in zip(p, levels, strict=True)])
    square = z3.Sum([a * k * k for a, k in zip(p, levels, strict=True)])
    low, high = levels[gap], levels[gap + 1]
    given = (*(a >= 0 for a in p), z3.Sum(p) == 1, mean >= low, mean <= high)
    return Statement(given, square - mean * mean >= factor * (mean - low) * (high - mean))


@proof("T22", method="smt", domain="2 to 5 levels, uniform and not, every law on them")
def unbiased_quantizers_are_noisy() -> None:
    """Var X >= (x - l)(u - x): (X - l)(X - u) is never negative off the open gap; the two neighbours attain it."""
    for levels in ((0, 1), (-1, 0, 1), (0, 1, 3), (-7, -2, 0, 1), (-2, -1, 0, 1, 2)):
        prove(*(variance_statement(levels, gap) for gap in range(len(levels) - 1)))
    x, low, high = sp.symbols("x l u", real=True)
    p = (x - low) / (high - low)
    two_points = (1 - p) * (low - x) ** 2 + p * (high - x) ** 2
    assert sp.simplify(two_points - (x - low) * (high - x)) == 0
    assert float(unbiased_variance_lower_bound(0.5, [-1.0, 0.0, 2.0])) == 0.75


@proof("T22", method="derivation", domain="every flip probability in (0, 1)")
def codes_tell_little() -> None:
    """(1 - p, p/2, p/2) has entropy h(p) + p log 2, the largest of all splits of p; it rises up to p = 2/3, to log 3."""
    p, q = sp.symbols("p q", positive=True)
    h = -p * sp.log(p) - (1 - p) * sp.log(1 - p)
    three = -(1 - p) * sp.log(1 - p) - q * sp.log(q) - (p - q) * sp.log(p - q)
    assert sp.simplify(sp.expand_log(three.subs(q, p / 2) - h - p * sp.log(2), force=True)) == 0
    assert sp.simplify(sp.diff(three, q).subs(q, p / 2)) == 0
    assert sp.simplify(sp.diff(three, q, 2) + p / (q * (p - q))) == 0  # concave in the split
    told = h + p * sp.log(2)
    slope = sp.log(1 - p) - sp.log(p) + sp.log(2)
    assert sp.simplify(sp.diff(told, p) - slope) == 0
    assert sp.simplify(sp.logcombine(slope.subs(p, sp.Rational(2, 3)), force=True)) == 0
    assert sp.simplify(sp.expand_log(told.subs(p, sp.Rational(2, 3)) - sp.log(3), force=True)) == 0
    for chance in (sp.Rational(1, 8), sp.Rational(1, 2)):
        exact = sp.N(told.subs(p, chance), 30)
        assert 0 <= sp.Rational(code_information_upper_bound(float(chance))) - exact <= exact / 2**45
