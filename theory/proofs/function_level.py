"""T13, T15 and T16 by SymPy: gating noise in a function's value, the two bounds of total variation, and recovery.

A proof takes nothing and returns nothing; it raises AssertionError where its statement fails.

>>> gating_moments()
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import sympy as sp

from unforgotten.theory.claims import proof
from unforgotten.theory.models.curvature import gating_curvature
from unforgotten.theory.models.divergence import total_variation_upper_bound
from unforgotten.theory.models.fieller import effective_items
from unforgotten.theory.models.recovery import recovered_fraction
from unforgotten.theory.models.response import gating_variance, linear_response, path_change, path_remainder_upper_bound
from unforgotten.theory.models.tails import bernstein_radius, bernstein_tail_upper_bound

DIGITS = 40
CODE_ERROR = sp.Rational(1, 10**13)  # relative: some dozens of roundings of 1e-16
STEP, PHASE = sp.symbols("Delta phi", positive=True)
WHOLE = sp.Symbol("n", integer=True, nonnegative=True)


def moment(order: int) -> Any:
    """Return E[D^order] under U, an integral over the position x in the cell: n steps, one more beyond 1 - phi."""
    x = sp.Symbol("x", real=True)
    low = sp.integrate((WHOLE * STEP) ** order, (x, 0, 1 - PHASE))
    return low + sp.integrate(((WHOLE + 1) * STEP) ** order, (x, 1 - PHASE, 1))


def near(got: float, exact: Any) -> bool:
    """Tell whether a float is within CODE_ERROR of an expression, relative."""
    value = sp.N(exact, DIGITS)
    return bool(abs(sp.Rational(got) - value) <= CODE_ERROR * abs(value))


@proof("T13", method="derivation", domain="every step and every |delta| = (n + phi) Delta, 0 <= phi <= 1")
def gating_moments() -> None:
    """E[D] = delta, Var[D] = Delta^2 phi (1 - phi), from the uniform position; and Delta |delta| less it is a square's sum.

    Delta |delta| - Var = Delta^2 (n + phi^2) >= 0 and Delta^2/4 - Var = Delta^2 (phi - 1/2)^2 >= 0.
    """
    delta = (WHOLE + PHASE) * STEP
    variance = moment(2) - moment(1) ** 2
    assert sp.expand(moment(1) - delta) == 0
    assert sp.expand(variance - STEP**2 * PHASE * (1 - PHASE)) == 0
    assert sp.expand(STEP * delta - variance - STEP**2 * (WHOLE + PHASE**2)) == 0
    assert sp.expand(STEP**2 / 4 - variance - STEP**2 * (PHASE - sp.Rational(1, 2)) ** 2) == 0
    for n, phi in ((0, 0.25), (3, 0.5), (1, 0.875)):
        point = {WHOLE: n, PHASE: sp.Rational(phi), STEP: sp.Rational(1, 2)}
        got = float(gating_variance(np.array((n + phi) / 2), 0.5))
        assert near(got, variance.subs(point)), f"n={n}, phi={phi}"


@proof("T13", method="derivation", domain="3 independent weights, any gradient and Hessian")
def response_moments() -> None:
    """Var[g·D] = sum g_i^2 Var[D_i], and E[D'HD]/2 - delta'H delta/2 = sum H_ii Var[D_i]/2: cross terms cancel.

    Independence enters as E[D_i D_j] = delta_i delta_j for i != j, and nowhere else.
    """
    g, d, v = (sp.symbols(f"{name}0:3", real=True) for name in ("g", "d", "v"))
    h = [[sp.Symbol(f"h{min(i, j)}{max(i, j)}") for j in range(3)] for i in range(3)]
    second = [[d[i] * d[j] + (v[i] if i == j else 0) for j in range(3)] for i in range(3)]
    pairs = [(i, j) for i in range(3) for j in range(3)]
    variance = sum(g[i] * g[j] * (second[i][j] - d[i] * d[j]) for i, j in pairs)
    assert sp.expand(variance - sum(g[i] ** 2 * v[i] for i in range(3))) == 0
    shift = sum(h[i][j] * (second[i][j] - d[i] * d[j]) for i, j in pairs) / 2
    assert sp.expand(shift - sum(h[i][i] * v[i] for i in range(3)) / 2) == 0
    delta, step = np.array([0.25, -0.5, 0.125]), np.array([1.0, 2.0, 0.25])
    noise = [sp.Rational(3, 16), sp.Rational(3, 4), sp.Rational(1, 64)]
    gradient = np.array([1.0, -2.0, 4.0])
    expected = sum(sp.Rational(a) ** 2 * b for a, b in zip(gradient.tolist(), noise, strict=True))
    assert near(linear_response(gradient, delta, step).variance, expected)
    curved = sum(sp.Rational(a) * b for a, b in zip(gradient.tolist(), noise, strict=True)) / 2
    assert near(gating_curvature(gradient, delta, step), curved)


@proof("T13", method="derivation", domain="polynomials of degree up to 8 along a segment")
def path_change_is_the_trapezoidal_rule() -> None:
    """F(1) - F(0) - (f(0) + f(1))/2 = -int t(1-t)/2 f2(t) dt, f = dF/dt, f2 its second; the kernel is >= 0, sum 1/12."""
    t = sp.Symbol("t", positive=True)
    kernel = t * (1 - t) / 2
    assert sp.integrate(kernel, (t, 0, 1)) == sp.Rational(1, 12)
    for power in range(1, 9):
        slope = sp.diff(t**power, t)
        gap = 1 - (slope.subs(t, 0) + slope.subs(t, 1)) / 2
        assert sp.integrate(kernel * sp.diff(slope, t, 2), (t, 0, 1)) == -gap, f"x^{power}"
    delta = np.array([3.0, 4.0])
    assert near(path_remainder_upper_bound(6.0, delta), sp.Rational(6, 12) * 125)
    assert near(path_change(np.array([[1.0, 0.0], [2.0, 3.0]]), delta), sp.Rational(9, 2) + 6)


@proof("T13", method="derivation", domain="1 to 4 independent weights")
def fourth_moment_of_the_norm() -> None:
    """E|D|^4 = (sum E D_i^2)^2 + sum (E D_i^4 - (E D_i^2)^2), for the remainder's sqrt(E|D|^2 E|D|^4) >= E|D|^3."""
    for n in range(1, 5):
        m2, m4 = sp.symbols(f"s0:{n}"), sp.symbols(f"q0:{n}")
        expanded = sum(m4[i] if i == j else m2[i] * m2[j] for i in range(n) for j in range(n))
        claimed = sum(m2) ** 2 + sum(b - a**2 for a, b in zip(m2, m4, strict=True))
        assert sp.expand(expanded - claimed) == 0, f"n={n}"


@proof("T13", method="derivation", domain="every x, V > 0 and M > 0")
def bernstein_exponent() -> None:
    """At s = x/(V + Mx/3): -s x + s^2 V/(2(1 - sM/3)) = -(x^2/2)/(V + Mx/3); the radius solves it for L.

    The log-moment: e^y <= 1 + y + (y^2/2)/(1 - |y|/3), as k! >= 2·3^(k-2) for k >= 2, by induction with k + 1 >= 3; so
    log E e^(s(X - EX)) <= s^2 Var/(2(1 - sM/3)), which independence sums and Markov's inequality uses.
    """
    x, v, m, log = sp.symbols("x V M L", positive=True)
    s = x / (v + m * x / 3)
    assert sp.simplify(1 - s * m / 3 - v / (v + m * x / 3)) == 0  # so s M < 3
    exponent = -s * x + s**2 * v / (2 * (1 - s * m / 3))
    assert sp.simplify(exponent + x**2 / 2 / (v + m * x / 3)) == 0
    y, k = sp.symbols("y k", positive=True)
    geometric = sp.series(y**2 / 2 / (1 - y / 3), y, 0, 12).removeO()
    for order in range(2, 12):
        assert geometric.coeff(y, order) == sp.Rational(1, 2) / 3 ** (order - 2)
        assert geometric.coeff(y, order) >= 1 / sp.factorial(order)
    assert sp.gammasimp(sp.factorial(k + 1) / sp.factorial(k)) == k + 1  # against 3, from k = 2 on
    radius = m * log / 3 + sp.sqrt((m * log / 3) ** 2 + 2 * v * log)
    assert sp.simplify(sp.expand(radius**2 / 2 - log * (v + m * radius / 3))) == 0
    for point in ({v: 2, m: 1, log: 3}, {v: sp.Rational(1, 4), m: 5, log: 20}):
        alpha = float(2 * sp.exp(-point[log]))
        exact_log = sp.log(2) - sp.log(sp.Rational(alpha))
        got = bernstein_radius(float(point[v]), float(point[m]), alpha)
        assert near(got, radius.subs(point | {log: exact_log}))
    tail = 2 * sp.exp(-(x**2) / 2 / (v + m * x / 3))
    assert near(bernstein_tail_upper_bound(3.0, 1.0, 2.0), tail.subs({x: 3, v: 1, m: 2}))


@proof("T15", method="derivation", domain="two outcomes; any number by the log-sum inequality")
def pinsker() -> None:
    """KL(p||q) - 2 (p-q)^2 is 0 at q = p with slope (q-p)(1-2q)^2/(q(1-q)) in q: so KL >= 2 TV^2.

    Merging outcomes into {p > q} and the rest keeps TV and lowers KL: t log t is convex (its second derivative is 1/t),
    which is the log-sum inequality.
    """
    p, q, t = sp.symbols("p q t", positive=True)
    kl = p * sp.log(p / q) + (1 - p) * sp.log((1 - p) / (1 - q))
    gap = kl - 2 * (p - q) ** 2
    assert sp.simplify(gap.subs(q, p)) == 0
    slope = (q - p) * (1 - 2 * q) ** 2 / (q * (1 - q))
    assert sp.simplify(sp.diff(gap, q) - slope) == 0
    assert sp.simplify(sp.diff(t * sp.log(t), t, 2) - 1 / t) == 0


@proof("T15", method="derivation", domain="each outcome; with TV^2 + affinity^2 <= 1, proved in `certificates`")
def bretagnolle_huber() -> None:
    """-2 log sum sqrt(p q) <= KL by Jensen, so TV <= sqrt(1 - affinity^2) <= sqrt(1 - exp(-KL)).

    With affinity = sum p sqrt(q/p): -2 log is convex, and -2 log sqrt(q/p) = log(p/q), the integrand of KL.
    """
    p, q, z = sp.symbols("p q z", positive=True)
    assert sp.simplify(p * sp.sqrt(q / p) - sp.sqrt(p * q)) == 0
    assert sp.simplify(sp.diff(-2 * sp.log(z), z, 2) - 2 / z**2) == 0
    assert sp.expand_log(-2 * sp.log(sp.sqrt(q / p)) - sp.log(p / q), force=True) == 0
    kl = sp.Symbol("kl", positive=True)
    for value in (sp.Rational(1, 1000), sp.Rational(1, 2), sp.Rational(3, 2), sp.Rational(5, 2), sp.Integer(9)):
        exact = sp.sqrt(sp.Min(kl / 2, 1 - sp.exp(-kl))).subs(kl, sp.Rational(float(value)))
        assert near(float(total_variation_upper_bound(float(value))), exact), f"KL={value}"


@proof("T15", method="derivation", domain="every KL > 0")
def total_variation_bound_is_concave() -> None:
    """KL/2 and 1 - exp(-KL) are concave, roots and minima of concave functions too: a mean KL bounds a mean TV."""
    kl = sp.Symbol("kl", positive=True)
    assert sp.diff(kl / 2, kl, 2) == 0
    assert sp.simplify(sp.diff(1 - sp.exp(-kl), kl, 2) + sp.exp(-kl)) == 0
    assert sp.simplify(sp.diff(sp.sqrt(kl), kl, 2) + kl ** sp.Rational(-3, 2) / 4) == 0


@proof("T16", method="derivation", domain="every sample: N, sums, squares; t > 0")
def fieller_is_the_inverse_of_a_test() -> None:
    """(sum r)^2 = f SS(r), r = a - rho b, f = t^2 N/(N-1), is the quadratic in rho whose roots the code takes.

    SS(r) = SS(a) - 2 rho SP + rho^2 SS(b) about the means; the set is an interval where the leading coefficient is > 0,
    that is where a test of mean b = 0 with this t rejects.
    """
    a, b, saa, sab, sbb, f, rho = sp.symbols("A B Saa Sab Sbb f rho", real=True)
    kept = (a - rho * b) ** 2 - f * (saa - 2 * rho * sab + rho**2 * sbb)
    square, middle, rest = b**2 - f * sbb, a * b - f * sab, a**2 - f * saa
    assert sp.expand(kept - (square * rho**2 - 2 * middle * rho + rest)) == 0
    for sign in (-1, 1):
        end = (middle + sign * sp.sqrt(middle**2 - square * rest)) / square
        assert sp.simplify(kept.subs(rho, end)) == 0


@proof("T16", method="derivation", domain="every weights; k of n items hold equal shares")
def kish_counts_the_items_that_hold_the_removal() -> None:
    """(sum b)^2 = n sum b^2 less the sum over i < j of (b_i - b_j)^2, so n_eff <= n; k equal items among zeros give k."""
    for n in range(1, 6):
        b = sp.symbols(f"b0:{n}", real=True)
        gap = n * sum(x**2 for x in b) - sum(b) ** 2
        assert sp.expand(gap - sum((b[i] - b[j]) ** 2 for i in range(n) for j in range(i + 1, n))) == 0
    for k in range(1, 5):
        assert near(effective_items(np.repeat([0.5, 0.0], [k, 9])), sp.Integer(k))


@proof("T16", method="derivation", domain="every metric u, q, t with t != u, every unit a != 0 and origin b")
def recovery_is_affine_invariant() -> None:
    """rho(a m + b) = rho(m), rho = 0 at q = u and 1 at q = t; q/t = rho + (1 - rho) u/t, which is not invariant."""
    u, q, t, a, b = sp.symbols("u q t a b", nonzero=True)
    rho = (q - u) / (t - u)
    moved = rho.subs({u: a * u + b, q: a * q + b, t: a * t + b}, simultaneous=True)
    assert sp.simplify(moved - rho) == 0
    assert rho.subs(q, u) == 0
    assert sp.simplify(rho.subs(q, t)) == 1
    assert sp.simplify(q / t - (rho + (1 - rho) * u / t)) == 0
    assert sp.simplify((q + b) / (t + b) - q / t) != 0


@proof("T16", method="derivation", domain="first order in the noise; the code by three lists of rationals")
def recovery_delta_method() -> None:
    """D rho = (d(q-u) - rho d(t-u))/(t-u): var rho = var(q - u - rho (t-u))/(n gap^2); and the code's rho is the quotient."""
    top, gap, d_top, d_gap, e = sp.symbols("top gap d_top d_gap e", nonzero=True)
    exact = (top + e * d_top) / (gap + e * d_gap)
    linear = (d_top - top / gap * d_gap) / gap
    assert sp.simplify(sp.diff(exact, e).subs(e, 0) - linear) == 0
    rows = ([0.25, 0.5, 0.125], [0.5, 0.75, 0.5], [1.0, 0.875, 0.625])
    u, q, t = (sum(map(Fraction, row), Fraction(0)) for row in rows)
    got = recovered_fraction(*(np.array(row) for row in rows), seed=0).rho
    ratio = (q - u) / (t - u)
    assert near(got, sp.Rational(ratio.numerator, ratio.denominator))
