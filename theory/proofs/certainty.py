"""T18 to T20 by SymPy and z3: gating certificate, dither certificate, functional gain.

A proof takes nothing and returns nothing; it raises AssertionError where its statement fails.

>>> gating_exponent()
"""

# pyright: reportOperatorIssue=false
# z3 declares unions of every kind of expression, and sums of those that have no sum.
from __future__ import annotations

from typing import Any

import numpy as np
import sympy as sp
import z3

from unforgotten.theory.claims import proof
from unforgotten.theory.models.functional_gain import functional_gain, share_returned
from unforgotten.theory.models.gating_certificate import effective_weights, gating_share_tail_upper_bound
from unforgotten.theory.proofs.smt import Statement, prove, size

DIGITS = 40
CODE_ERROR = sp.Rational(1, 10**13)  # relative: some dozens of roundings of 1e-16
STEP, PHASE = sp.symbols("Delta phi", positive=True)
WHOLE = sp.Symbol("n", integer=True, nonnegative=True)


def near(got: float, exact: Any) -> bool:
    """Tell whether a float is within CODE_ERROR of an expression, relative."""
    value = sp.N(exact, DIGITS)
    return bool(abs(sp.Rational(got) - value) <= CODE_ERROR * abs(value))


def error_moment(order: int) -> Any:
    """Return E[e^order] of e = D - delta: -phi Delta with probability 1 - phi, (1 - phi) Delta with phi."""
    return (1 - PHASE) * (-PHASE * STEP) ** order + PHASE * ((1 - PHASE) * STEP) ** order


@proof("T18", method="derivation", domain="every V, M, effect and share > 0")
def gating_exponent() -> None:
    """Bernstein's exponent at x = y E is n_eff y^2 / (2 + 2 M y E / (3 V)), n_eff = E^2 / V; n |delta| / Delta for like weights."""
    v, m, e, y, n, g, d = sp.symbols("V M E y n g d", positive=True)
    x = y * e
    claimed = e**2 / v * y**2 / (2 + 2 * m * y * e / (3 * v))
    assert sp.simplify(x**2 / 2 / (v + m * x / 3) - claimed) == 0
    assert sp.simplify((n * g * d) ** 2 / (n * g**2 * STEP * d) - n * d / STEP) == 0
    gradient, delta = np.array([2.0, -1.0]), np.array([0.5, 0.25])
    at = {v: sp.Rational(9, 2), m: 4, e: sp.Rational(3, 4), y: 12}
    assert near(effective_weights(gradient, delta, 2.0), (e**2 / v).subs(at))
    tail = 2 * sp.exp(-claimed.subs(at))
    assert near(gating_share_tail_upper_bound(12.0, gradient, delta, 2.0), tail)


@proof("T18", method="derivation", domain="every step and phase")
def squared_error_noise() -> None:
    """E[e^2] = Delta^2 phi (1 - phi), Var[e^2] = (1 - 2 phi)^2 Delta^2 E[e^2] <= Delta^2 E[e^2]; the two values differ by Delta^2 |1 - 2 phi|."""
    second, fourth = error_moment(2), error_moment(4)
    assert sp.expand(error_moment(1)) == 0
    assert sp.expand(second - STEP**2 * PHASE * (1 - PHASE)) == 0
    assert sp.expand(fourth - second**2 - (1 - 2 * PHASE) ** 2 * STEP**2 * second) == 0
    values = ((1 - PHASE) * STEP) ** 2 - (PHASE * STEP) ** 2
    assert sp.expand(values - STEP**2 * (1 - 2 * PHASE)) == 0
    assert sp.expand(1 - (1 - 2 * PHASE) ** 2 - 4 * PHASE * (1 - PHASE)) == 0  # so the factor is at most 1


@proof("T20", method="derivation", domain="3 weights, every gradient, Hessian, update and survivor of a quadratic F")
def sign_of_what_comes_back() -> None:
    """F(w') - F(w + D) = (1 - Gamma) g·delta - e'He / 2 with e = D - delta, and F(w') - F(w) has no part in it."""
    n = 3
    g, d, kept = (sp.Matrix(sp.symbols(f"{name}0:{n}", real=True)) for name in ("g", "d", "k"))
    h = sp.Matrix(n, n, lambda i, j: sp.Symbol(f"h{min(i, j)}{max(i, j)}", real=True))
    e = kept - d
    change = (g.T * e)[0] + (e.T * h * e)[0] / 2
    effect = (g.T * d)[0]
    gamma = (g.T * kept)[0] / effect
    claimed = (1 - gamma) * effect - (e.T * h * e)[0] / 2
    assert sp.simplify(-change - claimed) == 0
    gradient, delta, survivor = np.array([1.0, -2.0]), np.array([0.5, 0.25]), np.array([1.0, -0.5])
    assert effect_free(gradient, delta)
    gradient = np.array([1.0, -1.0])
    assert near(functional_gain(gradient, delta, survivor), sp.Integer(6))
    # curvature 2 and e = (1/2, -3/4): R is at most 13/16, the effect 1/4
    found = share_returned(gradient, delta, survivor, curvature=2.0)
    assert near(found.share, sp.Integer(-5))
    assert near(found.low, -5 - sp.Rational(13, 4))
    assert near(found.high, -5 + sp.Rational(13, 4))


@proof("T20", method="smt", domain="every effect, first-order change and remainder")
def certain_sign() -> None:
    """|R| < |(1 - Gamma) g·delta| makes what comes back have the sign of 1 - Gamma; at equality it can be 0."""
    prove(sign_statement())


def sign_statement(*, strict: bool = True) -> Statement:
    """State that (1 - Gamma) E - R has the sign of (1 - Gamma) E where |R| is smaller."""
    lost, rest = z3.Real("lost"), z3.Real("rest")
    smaller = size(rest) < size(lost) if strict else size(rest) <= size(lost)
    return Statement((smaller,), (lost - rest) * lost > 0)


def effect_free(gradient: Any, delta: Any) -> bool:
    """Tell whether an update is refused for having no effect of first order."""
    try:
        functional_gain(gradient, delta, delta)
    except ValueError:
        return True
    return False
