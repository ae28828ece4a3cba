"""T21: the parts of its argument by SymPy, z3 and in rationals: Jensen, the share of a step, the sum, the fullest filling."""

# pyright: reportOperatorIssue=false
# z3 declares unions of every kind of expression, and sums of those that have no sum.
from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import sympy as sp
import z3

from unforgotten.theory.claims import proof
from unforgotten.theory.geometry.second_moment import step_weights
from unforgotten.theory.proofs.displacement import BETA1, BETA2, moment_weights
from unforgotten.theory.proofs.smt import Statement, prove, reals

STEPS = (1, 2, 3, 4)


def jensen_statement(t: int, *, factor: Fraction = Fraction(1)) -> Statement:
    """State that m^_t^2 <= sum_s a_ts g_s^2, a_ts the shares of the bias-corrected first moment."""
    first, _ = moment_weights(t)
    g = reals("g", t)
    shares = [z3.Q(a.numerator, a.denominator) for a in first]
    mean = z3.Sum([a * x for a, x in zip(shares, g, strict=True)])
    square = z3.Sum([a * x * x for a, x in zip(shares, g, strict=True)])
    return Statement((), mean * mean <= z3.Q(factor.numerator, factor.denominator) * square)


def filling_statement(count: int, whole: int, *, sorted_weights: bool = True) -> Statement:
    """State that sum K x <= K_1 + … + K_whole + (B - whole) K_next for falling K >= 0, x in [0, 1], sum x <= B in [whole, whole + 1]."""
    k, x, budget = reals("k", count), reals("x", count), z3.Real("B")
    falling = [a >= b for a, b in pairwise(k)] if sorted_weights else []
    given = (*falling, *(a >= 0 for a in k), *(z3.And(a >= 0, a <= 1) for a in x), z3.Sum(x) <= budget)
    inside = (budget >= whole, budget <= whole + 1)
    filled = z3.Sum([*k[:whole], (budget - whole) * k[whole]])
    return Statement((*given, *inside), z3.Sum([a * b for a, b in zip(k, x, strict=True)]) <= filled)


@proof("T21", method="smt", domain="steps 1 to 4 at the default betas; up to 3 steps between two records")
def mean_squares_and_fillings() -> None:
    """Jensen's inequality for the first moment, and that the largest weights take the most of what is known to add up."""
    prove(*(jensen_statement(t) for t in STEPS))
    prove(*(filling_statement(n, whole) for n in (1, 2, 3) for whole in range(n)))


@proof("T21", method="derivation", domain="every v > 0, beta2 and number of steps")
def shares_telescope() -> None:
    """x_s = 1 - b2 v_{s-1} / v_s <= log(v_s / v_{s-1}) - log b2; and (sum lr u)^2 <= (sum lr)(sum lr u^2), by Lagrange."""
    b, v, g, y = sp.symbols("b2 v g y", positive=True)
    after = b * v + (1 - b) * g**2
    assert sp.simplify((1 - b) * g**2 / after - (1 - b * v / after)) == 0
    gap = -sp.log(y) - (1 - y)  # 0 at y = 1, falling before and rising behind
    assert gap.subs(y, 1) == 0
    assert sp.simplify(sp.diff(gap, y) - (y - 1) / y) == 0
    t = 4
    rates, steps = sp.symbols(f"r0:{t}", positive=True), sp.symbols(f"u0:{t}", real=True)
    left = sum(rates) * sum(r * u**2 for r, u in zip(rates, steps, strict=True))
    right = sum(r * u for r, u in zip(rates, steps, strict=True)) ** 2
    pairs = sum(rates[i] * rates[j] * (steps[i] - steps[j]) ** 2 for i in range(t) for j in range(i + 1, t))
    assert sp.expand(left - right - pairs) == 0


@proof("T21", method="exact", domain="1, 2, 5 and 40 steps at the default betas, two schedules")
def weights_are_their_sums() -> None:
    """K_s is sum_{t>=s} lr_t a_ts (1-b2^t) / (1-b2) b2^(s-t), by its definition in rationals, within 2^-44 of the code's."""
    for steps in (1, 2, 5, 40):
        for rates in ([1] * steps, [1 + t % 3 for t in range(steps)]):
            code = step_weights(np.array(rates, np.float64), float(BETA1), float(BETA2))
            for s in range(1, steps + 1):
                exact = Fraction(0)
                for t in range(s, steps + 1):
                    share = (1 - BETA1) * BETA1 ** (t - s) / (1 - BETA1**t)
                    exact += rates[t - 1] * share * (1 - BETA2**t) / (1 - BETA2) * BETA2 ** (s - t)
                assert abs(Fraction(float(code[s - 1])) - exact) <= exact / 2**44, f"T={steps}, s={s}"
