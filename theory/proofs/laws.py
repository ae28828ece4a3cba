"""T6-T11 derived with SymPy from their definitions, and the code's functions checked against the result.

A proof takes nothing and returns nothing; it raises AssertionError where its statement fails.

>>> unbiased_gating()
"""

# pyright: reportOperatorIssue=false, reportIndexIssue=false
# SymPy declares Basic where it returns expressions.
from __future__ import annotations

import math
from typing import Any

import numpy as np
import sympy as sp

from unforgotten.theory.claims import proof
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.geometry.motion import rounded_velocity, step_law
from unforgotten.theory.laws.absmax import absmax_cdf, expected_absmax, expected_inverse_absmax
from unforgotten.theory.laws.boundary import boundary_density, levels_moved, shape_of
from unforgotten.theory.laws.concentration import concentrated_cosine, needed_share
from unforgotten.theory.laws.densities import Gaussian, Laplace
from unforgotten.theory.laws.energy import effective_step, energy_density, expected_cosine, gated_energy
from unforgotten.theory.laws.gating import gated_mean, gated_variance, riemann_gain
from unforgotten.theory.laws.regimes import hidden_energy_upper_bound, hidden_wash_z, on_grid_gain
from unforgotten.theory.laws.scaling import flip_rate, flip_ratio

CLOSE = 1e-12  # float64 against 30 digits of SymPy, over at most a few hundred operations
step, phi, u, x = sp.symbols("Delta phi u x", positive=True)


def agree(value: float, expression: Any) -> None:
    """Assert that the code's float and the derived expression agree to CLOSE."""
    exact = float(sp.N(expression, 30))
    assert math.isclose(value, exact, rel_tol=CLOSE, abs_tol=1e-300), (value, exact)


def _moment(n: int, power: int) -> Any:
    """Return E[D^power] for u uniform on (0, 1), |delta| = (n + phi) Delta: D = Delta floor(u + n + phi)."""
    below = sp.integrate((n * step) ** power, (u, 0, 1 - phi))
    above = sp.integrate(((n + 1) * step) ** power, (u, 1 - phi, 1))
    return sp.expand(below + above)


@proof("T6", method="derivation", domain="a uniform grid under U, any density; values at INT4, Gaussian")
def boundary_terms() -> None:
    """P(flip) = |delta| / Delta below a step, and d/d delta of sum_k [F(t_k) - F(t_k - delta)] at 0 is sum_k f(t_k)."""
    flips = sp.integrate(1, (u, 1 - phi, 1))
    assert sp.simplify(flips - phi) == 0
    delta, t, sigma = sp.symbols("delta t sigma", positive=True)
    cdf = (1 + sp.erf(x / (sigma * sp.sqrt(2)))) / 2
    moved = cdf.subs(x, t) - cdf.subs(x, t - delta)
    slope = sp.simplify(sp.diff(moved, delta).subs(delta, 0) - sp.diff(cdf, x).subs(x, t))
    assert slope == 0
    fmt, a, d = format_named("int4-g64"), sp.Rational(5, 2), sp.Rational(1, 8)
    inside = (cdf.subs(x, a) - cdf.subs(x, -a)).subs(sigma, 1)
    places = [sp.Rational(2 * k + 1, 2) * a / 7 for k in range(-7, 7)]
    total = sum((moved.subs({t: p, delta: d, sigma: 1}) for p in places), sp.Integer(0))
    agree(levels_moved(fmt, Gaussian(1.0), 2.5, 0.125), total / inside)
    heights = sum((sp.diff(cdf, x).subs({x: p, sigma: 1}) for p in places), sp.Integer(0))
    agree(boundary_density(fmt, Gaussian(1.0), 2.5), heights / inside)


@proof("T7", method="derivation", domain="n = 0 … 4 whole steps, any phi in (0, 1)")
def unbiased_gating() -> None:
    """E[D | delta] = delta and Var[D | delta] = Delta^2 phi (1 - phi), by integration over the place in the cell."""
    for n in range(5):
        mean, square = _moment(n, 1), _moment(n, 2)
        assert sp.simplify(mean - (n + phi) * step) == 0
        assert sp.simplify(square - mean**2 - step**2 * phi * (1 - phi)) == 0
        for part in (sp.Rational(1, 8), sp.Rational(5, 8)):
            at = {step: sp.Rational(3, 4), phi: part}
            delta = float((n + part) * at[step])
            agree(float(gated_mean(delta, 0.75)), mean.subs(at))
            agree(float(gated_variance(delta, 0.75)), (square - mean**2).subs(at))


@proof("T7", method="derivation", domain="any grid; values for NF4 under a Laplace density")
def riemann_sum() -> None:
    """d/d delta sum_k Delta_k [F(t_k) - F(t_k - delta)] at 0 is sum_k Delta_k f(t_k)."""
    fmt, a = format_named("nf4-b64"), 2.0
    shape = shape_of(fmt)
    b = 1 / sp.sqrt(2)
    heights = [sp.exp(-abs(sp.Rational(float(a * t))) / b) / (2 * b) for t in shape.thresholds]
    steps = [sp.Rational(float(s)) for s in a * np.diff(shape.levels)]
    mass = 1 - sp.exp(-sp.Rational(a) / b)
    first = sum((s * h for s, h in zip(steps, heights, strict=True)), sp.Integer(0))
    second = sum((s**2 * h for s, h in zip(steps, heights, strict=True)), sp.Integer(0))
    agree(riemann_gain(fmt, Laplace(1.0), a), first / mass)
    agree(effective_step(fmt, Laplace(1.0), a), second / first)
    agree(energy_density(fmt, Laplace(1.0), a), second / mass)


@proof("T8", method="derivation", domain="n = 0 … 4 whole steps, any phi in (0, 1)")
def energy_of_the_survivor() -> None:
    """E[D^2 | delta] = Delta^2 (n^2 + (2n + 1) phi), by integration; Delta |delta| at n = 0; and the cosine that follows."""
    for n in range(5):
        square = _moment(n, 2)
        assert sp.simplify(square - step**2 * (n**2 + (2 * n + 1) * phi)) == 0
        at = {step: sp.Rational(3, 4), phi: sp.Rational(3, 8)}
        agree(float(gated_energy(float((n + at[phi]) * at[step]), 0.75)), square.subs(at))
    size = phi * step
    assert sp.simplify(_moment(0, 2) - step * size) == 0
    cosine = sp.sqrt(2 * size**2) / sp.sqrt(step * 2 * size)
    agree(expected_cosine(np.full(2, 0.25), 2.0), cosine.subs({step: 2, phi: sp.Rational(1, 8)}))


@proof("T9", method="derivation", domain="adaptive uniform grid, first order; uniform and Laplace weights in a block")
def followers_of_the_scale() -> None:
    """|w|/a is the mean shift of an unmoved weight over that of a moved one, so x = E|w|/a: the limit of fine grids.

    Moved ones are shifted by |1 - s w/a| d with a sign s, which is d in the mean over s as |w| <= a.
    """
    w, a, d = sp.symbols("w a d", positive=True)
    before = w / a  # place in units of the scale, after the absmax has become a + d
    shift = sp.series(w / (a + d) - before, d, 0, 2).removeO() * a
    assert sp.simplify(-shift / d - w / a) == 0
    assert sp.simplify((1 - w / a) / 2 + (1 + w / a) / 2 - 1) == 0
    x = sp.Symbol("x", positive=True)
    for f in (sp.Integer(1), sp.exp(-3 * x)):
        mean = sp.integrate(x * f, (x, 0, 1)) / sp.integrate(f, (x, 0, 1))
        points = [sp.Rational(2 * k + 1, 2 * 127) for k in range(127)]
        riemann = sum(p * f.subs(x, p) for p in points) / sum(f.subs(x, p) for p in points)
        assert abs(sp.N(mean - riemann)) < sp.Rational(1, 127**2), f  # midpoint rule, second order
    both = concentrated_cosine(0.02, 0.1, 1.0) / concentrated_cosine(0.02, 0.1, 1.0, 0.5)
    agree(both, sp.sqrt(1 + sp.Rational(9, 10) / 2))


@proof("T9", method="derivation", domain="moved weights of equal size, at most a step")
def concentration() -> None:
    """Cos = sqrt(rms / Delta) rho^(-1/4), which is 1 at rho = (rms / Delta)^2; beyond, cos^2 >= 8/9."""
    rms, rho, n = sp.symbols("r rho n", positive=True)
    size = rms / sp.sqrt(rho)
    cosine = rms / sp.sqrt(rho * step * size)
    assert sp.simplify(cosine - sp.sqrt(rms / step) * rho ** sp.Rational(-1, 4)) == 0
    assert sp.simplify(cosine.subs(rho, (rms / step) ** 2)) == 1
    at = {rms: sp.Rational(1, 50), rho: sp.Rational(1, 10), step: 1}
    agree(concentrated_cosine(0.02, 0.1, 1.0), cosine.subs(at))
    agree(needed_share(0.02, 0.5, 1.0), sp.Rational(1, 2500) * 16)
    squared = (n + phi) ** 2 / (n**2 + (2 * n + 1) * phi)
    least = sp.solve(sp.numer(sp.together(sp.diff(squared, phi))), phi)
    best = [sp.simplify(squared.subs(phi, p)) for p in least if sp.simplify(p + n) != 0]
    assert [sp.simplify(b.subs(n, 1)) for b in best] == [sp.Rational(8, 9)]
    assert sp.simplify(best[0] - 4 * n * (n + 1) / (2 * n + 1) ** 2) == 0  # rises with n


@proof("T10", method="derivation", domain="two Laplace or Gaussian weights; symmetric integers of 2 to 8 bits")
def order_statistics() -> None:
    """H(a) = (F(a) - F(-a))^B; E[max] and E[1/max] of two weights by integration; the ratio of bits."""
    b = sp.Symbol("b", positive=True)
    law = (1 - sp.exp(-x / b)) ** 2
    agree(float(absmax_cdf(1.5, Laplace(1.0), 2)), law.subs({b: 1 / sp.sqrt(2), x: sp.Rational(3, 2)}))
    mean = sp.simplify(sp.integrate(sp.expand(x * sp.diff(law, x)), (x, 0, sp.oo)))
    assert sp.simplify(mean - sp.Rational(3, 2) * b) == 0
    assert math.isclose(expected_absmax(Laplace(1.0), 2), 1.5 / math.sqrt(2), rel_tol=1e-8)
    # integral of (2/b) (e^(-x/b) - e^(-2x/b)) / x is Frullani's: (2/b) log 2
    density = sp.expand(sp.diff(law, x))
    assert sp.simplify(density - 2 / b * (sp.exp(-x / b) - sp.exp(-2 * x / b))) == 0
    inverse = 2 * math.sqrt(2) * math.log(2)
    assert math.isclose(expected_inverse_absmax(Laplace(1.0), 2), inverse, rel_tol=1e-7)
    for bits in range(2, 9):
        agree(flip_ratio(bits, 4), sp.Rational(2 ** (bits - 1) - 1, 7))
        rate = flip_rate(1e-3, bits, Laplace(1.0), 2)
        assert math.isclose(rate, 1e-3 * (2 ** (bits - 1) - 1) * inverse, rel_tol=1e-7)


@proof("T11", method="derivation", domain="(a) Gaussian updates; (c) uniform places")
def biased_regimes() -> None:
    """(a) E[delta; delta > t] = phi(t), so G = 2 c sum_k phi((k - 1/2) c); (c) E[max(u, 1 - u)^2] = 7/12."""  # noqa: D401
    t, c = sp.symbols("t c", positive=True)
    normal = sp.exp(-(x**2) / 2) / sp.sqrt(2 * sp.pi)
    assert sp.simplify(sp.integrate(x * normal, (x, t, sp.oo)) - normal.subs(x, t)) == 0
    total = sum((2 * c * normal.subs(x, (k + sp.Rational(1, 2)) * c) for k in range(40)), sp.Integer(0))
    for value in (sp.Rational(1, 2), sp.Integer(2), sp.Integer(6)):
        agree(on_grid_gain(1.0, float(value)), total.subs(c, value))
    hidden = 2 * sp.integrate(u**2, (u, sp.Rational(1, 2), 1)) * step**2
    agree(hidden_energy_upper_bound(0.75), hidden.subs(step, sp.Rational(3, 4)))
    n, p = sp.symbols("n p", positive=True)
    z = (0 - n * p) / sp.sqrt(n * p * (1 - p))
    agree(hidden_wash_z(400, 0.25), z.subs({n: 400, p: sp.Rational(1, 4)}))


@proof("T5", method="derivation", domain="stationary gradients; steps with normal noise, 8 spacings")
def rounded_steps() -> None:
    """E[rint(X)] = sum_k P(X > k - 1/2) - P(X < 1/2 - k), and m averages (1 + b1) / (1 - b1) gradients."""
    beta, j = sp.symbols("beta j", positive=True)
    weight = (1 - beta) ** 2 * sp.summation(beta ** (2 * j), (j, 0, sp.oo)).args[0][0]
    assert sp.simplify(weight - (1 - beta) / (1 + beta)) == 0
    law = step_law("adamw", 1.0)
    drift, noise = sp.Rational(float(law.drift[-1])), float(law.noise[-1])
    variance = sp.Rational(1, 19) * (1 - drift**2)  # beta1 = 0.9
    assert math.isclose(noise, float(sp.sqrt(variance)), rel_tol=CLOSE)
    mean, spread = sp.Rational(3, 10), sp.Rational(1, 5)

    def above(y: Any) -> Any:
        return sp.erfc((y - mean) / (spread * sp.sqrt(2))) / 2

    def between(k: int) -> Any:
        return above(k - sp.Rational(1, 2)) - above(k + sp.Rational(1, 2))

    direct = sum((k * between(k) for k in range(-8, 9)), sp.Integer(0))
    agree(float(rounded_velocity(0.3, 0.2, 1.0, 1.0)), direct)
