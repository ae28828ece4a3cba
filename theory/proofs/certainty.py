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
from unforgotten.theory.models.dither import dithered_loss_radius, dithered_moments
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


@proof(
    "T19", method="derivation", domain="every w = (n + phi) Delta and |delta| = (m + psi) Delta; places by integration"
)
def dithered_rounding() -> None:
    """E[Q] = w, Var[Q] = Delta^2 phi (1 - phi); with a shared dither D has n or n + 1 steps as under U, whatever phi is.

    floor(phi + u) is 1 for u >= 1 - phi. For the survivor, u -> frac(phi + u) keeps the uniform law, as it is two shifts.
    """
    u = sp.Symbol("u", real=True)
    value = [WHOLE * STEP, (WHOLE + 1) * STEP]
    first, second = (
        sp.integrate(value[0] ** k, (u, 0, 1 - PHASE)) + sp.integrate(value[1] ** k, (u, 1 - PHASE, 1)) for k in (1, 2)
    )
    assert sp.expand(first - (WHOLE + PHASE) * STEP) == 0
    assert sp.expand(second - first**2 - STEP**2 * PHASE * (1 - PHASE)) == 0
    f = sp.Function("f")
    x = sp.Symbol("x", real=True)
    shifted = sp.Integral(f(x), (x, PHASE, 1)) + sp.Integral(f(x), (x, 0, PHASE))
    powers = [shifted.replace(f, lambda y, k=k: y**k).doit() - sp.Rational(1, k + 1) for k in range(5)]
    assert all(sp.expand(p) == 0 for p in powers)
    got = dithered_moments(np.array([0.75]), 0.5)
    assert (got.mean[0], got.variance[0]) == (0.75, 0.0625)


@proof(
    "T19",
    method="derivation",
    domain="centred variables of two values Delta apart, every phi; sums of independent ones",
)
def dithered_tail() -> None:
    """E exp(s e) has a logarithm <= s^2 Delta^2 / 8: at 0 it and its slope are 0, and its curvature is a variance, at most Delta^2 / 4.

    At s = 4 x / sum Delta^2 the exponent -s x + s^2 sum Delta^2 / 8 is -2 x^2 / sum Delta^2, so x = |Delta| sqrt(L / 2) gives -L.
    """
    s, x, total, log = sp.symbols("s x T L", positive=True)
    moment = (1 - PHASE) * sp.exp(-s * PHASE * STEP) + PHASE * sp.exp(s * (1 - PHASE) * STEP)
    generating = sp.log(moment)
    assert sp.simplify(generating.subs(s, 0)) == 0
    assert sp.simplify(sp.diff(generating, s).subs(s, 0)) == 0
    tilted = PHASE * sp.exp(s * (1 - PHASE) * STEP) / moment  # the probability of the upper value, tilted
    assert sp.simplify(sp.diff(generating, s, 2) - STEP**2 * tilted * (1 - tilted)) == 0
    exponent = -s * x + s**2 * total / 8
    best = exponent.subs(s, 4 * x / total)
    assert sp.simplify(best + 2 * x**2 / total) == 0
    assert sp.simplify(best.subs(x, sp.sqrt(total * log / 2)) + log) == 0
    got = dithered_loss_radius(np.array([3.0, -4.0]), 2.0, 0.25)
    assert near(got, 10 * sp.sqrt(sp.log(4) / 2))
    bent = dithered_loss_radius(np.array([3.0, -4.0]), 2.0, 0.25, curvature=np.array([1.0, 0.5]))
    root = sp.sqrt(sp.log(8) / 2)
    assert near(bent, 10 * root + (sp.Rational(6, 4) + sp.sqrt(20) * root) / 2)
