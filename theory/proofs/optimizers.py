"""T5 by SymPy: AdamW's closed form from its recursion, its case of equality, its limit, its monotony; SGD and LoRA.

A proof takes nothing and returns nothing; it raises AssertionError where its statement fails.

>>> decay_unrolls()
"""

from __future__ import annotations

from itertools import product
from typing import Any

import sympy as sp

from unforgotten.theory.claims import proof
from unforgotten.theory.geometry.adamw import adamw_limit_ratio, adamw_ratio_upper_bound
from unforgotten.theory.geometry.optimizers import (
    adam_uncorrected_step_upper_bound,
    lora_change_upper_bound,
    sgd_step_upper_bound,
)

B1, B2 = sp.symbols("beta1 beta2", positive=True)
R = B1**2 / B2
BETAS = ((0.9, 0.999), (0.9, 0.95), (0.5, 0.999), (0.95, 0.9), (0.0, 0.9))
STEPS = (1, 2, 3, 10, 100, 1000, 10_000)
DIGITS = 50
CODE_ERROR = 2e-14  # relative: 40 roundings up, twice, and the oracle's


def square_of_bound(t: Any) -> Any:
    """Return c_t^2 in closed form."""
    front = (1 - B2**t) / (1 - B1**t) ** 2 * (1 - B1) ** 2 / (1 - B2)
    return front * (1 - R**t) / (1 - R)


def recursion(gradients: list[Any]) -> tuple[Any, Any]:
    """Return m^_t and v^_t of AdamW, step by step from their recursion."""
    m = v = sp.Integer(0)
    for g in gradients:
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g**2
    t = len(gradients)
    return m / (1 - B1**t), v / (1 - B2**t)


def check_equal(a: Any, b: Any, name: str) -> None:
    """Assert that two rational expressions are one.

    Raises:
        AssertionError: their difference is not 0.
    """
    assert sp.cancel(sp.together(a - b)) == 0, name


def check_code(got: float, expression: Any, name: str) -> None:
    """Assert that a float lies at or above an expression, within CODE_ERROR.

    Raises:
        AssertionError: it does not.
    """
    exact = sp.N(expression, DIGITS)
    assert exact <= sp.Rational(got) <= exact * (1 + sp.Rational(CODE_ERROR)), name


@proof("T5", method="derivation", domain="1 to 5 steps, all gradients and betas")
def adamw_deficit_is_a_sum_of_squares() -> None:
    """c_t^2 v^_t - m^_t^2 is a sum of squares (Lagrange's identity), so |m^_t| <= c_t sqrt(v^_t) for all gradients.

    With a_k = (b1^2/b2)^(k/2) and x_k = b2^(k/2) g: (sum a^2)(sum x^2) - (sum a x)^2 = sum over k < l of
    (a_k x_l - a_l x_k)^2, and (a_k x_l - a_l x_k)^2 = (b1^k b2^l g_l - b1^l b2^k g_k)^2 / (b2^k b2^l).
    """
    for t in range(1, 6):
        gradients = sp.symbols(f"g0:{t}", real=True)  # by age: g_0 is the last
        m, v = recursion(list(reversed(gradients)))
        squares = sum(
            (B1**k * B2**j * gradients[j] - B1**j * B2**k * gradients[k]) ** 2 / B2 ** (k + j)
            for k in range(t)
            for j in range(k + 1, t)
        )
        deficit = square_of_bound(t) * v - m**2
        check_equal(deficit, ((1 - B1) / (1 - B1**t)) ** 2 * squares, f"t={t}")


@proof("T5", method="derivation", domain="every number of steps")
def adamw_series_is_geometric() -> None:
    """sum_{k<t} r^k (1 - r) = 1 - r^t: true at t = 0, and both sides grow by r^t (1 - r) from t to t + 1."""
    t, r = sp.symbols("t r", positive=True)
    assert sp.simplify((1 - r ** (t + 1)) - (1 - r**t) - r**t * (1 - r)) == 0
    assert sp.simplify((1 - r**t).subs(t, 0)) == 0


@proof("T5", method="derivation", domain="1 to 8 steps, all betas")
def adamw_bound_is_attained() -> None:
    """g_i = (b1/b2)^(t-i) has m^_t^2 = c_t^2 v^_t, identically in the betas."""
    for t in range(1, 9):
        m, v = recursion([(B1 / B2) ** (t - i) for i in range(1, t + 1)])
        check_equal(m**2, square_of_bound(t) * v, f"t={t}")


@proof("T5", method="derivation", domain="every t and all betas with beta1^2 != beta2; p = beta1^t, q = beta2^t")
def adamw_limit_is_the_supremum() -> None:
    """(1-p)^2 - (1-q)(1-p^2/q) = (p-q)^2/q >= 0, so c_t <= c_inf = (1-b1)/sqrt((1-b2)(1-r)) where r < 1."""
    p, q = sp.symbols("p q", positive=True)
    check_equal((1 - p) ** 2 - (1 - q) * (1 - p**2 / q), (p - q) ** 2 / q, "supremum")
    limit = (1 - B1) ** 2 / (1 - B2) / (1 - R)
    t = sp.Integer(3)
    scaled = limit * (1 - B2**t) * (1 - (B1**t) ** 2 / B2**t) / (1 - B1**t) ** 2
    check_equal(square_of_bound(t), scaled, "c_t by c_inf")
    for beta1, beta2 in BETAS:
        if beta1**2 < beta2:
            point = {B1: sp.Rational(beta1), B2: sp.Rational(beta2)}
            value = sp.sqrt(limit.subs(point))
            check_code(adamw_limit_ratio(beta1, beta2), value, f"{beta1}, {beta2}")


@proof("T5", method="derivation", domain="every real t > 0 and all betas with beta1^2 != beta2")
def adamw_bound_never_falls() -> None:
    """c_t^2 ~ (1 - (sinh((d-a)t/2)/sinh((d+a)t/2))^2)/(1-r), b2 = e^-2a, r = e^-2d: monotone, as x coth x is.

    The logarithmic derivative of sinh(cx)/sinh(dx) is (cx coth cx - dx coth dx)/x, and (x coth x)' =
    (sinh 2x - 2x)/(2 sinh^2 x) >= 0. So the quotient falls for |c| < d, which is r < 1; for r > 1 it grows, and 1 - r is negative.
    """
    a, d, t, x = sp.symbols("a d t x", positive=True)
    q, p = sp.exp(-2 * a * t), sp.exp(-(a + d) * t)
    left = (1 - q) * (1 - p**2 / q) / (1 - p) ** 2
    right = 1 - (sp.sinh((d - a) * t / 2) / sp.sinh((d + a) * t / 2)) ** 2
    assert sp.simplify((left - right).rewrite(sp.exp)) == 0, "hyperbolic form"
    slope = sp.diff(x * sp.coth(x), x)
    claimed = (sp.sinh(2 * x) - 2 * x) / (2 * sp.sinh(x) ** 2)
    assert sp.simplify((slope - claimed).rewrite(sp.exp)) == 0, "slope of x coth x"
    c, e = sp.symbols("c e", positive=True)
    log_slope = sp.diff(sp.log(sp.sinh(c * x)) - sp.log(sp.sinh(e * x)), x)
    by_coth = (c * x * sp.coth(c * x) - e * x * sp.coth(e * x)) / x
    assert sp.simplify((log_slope - by_coth).rewrite(sp.exp)) == 0, "logarithmic derivative"


@proof("T5", method="derivation", domain=f"{len(BETAS)} pairs of betas, t up to {STEPS[-1]}")
def adamw_code_is_the_closed_form() -> None:
    """`adamw_ratio_upper_bound` is the closed form, rounded up, by 50 digits; likewise without bias correction."""
    for (beta1, beta2), t in product(BETAS, STEPS):
        point = {B1: sp.Float(sp.Rational(beta1), DIGITS), B2: sp.Float(sp.Rational(beta2), DIGITS)}
        square = square_of_bound(t).subs(point)
        check_code(adamw_ratio_upper_bound(t, beta1, beta2), sp.sqrt(square), f"{beta1}, {beta2}, {t}")
        plain = square * ((1 - B1**t) ** 2 / (1 - B2**t)).subs(point)
        bound = adam_uncorrected_step_upper_bound(1.0, t, beta1, beta2)
        check_code(bound, sp.sqrt(plain), f"uncorrected {beta1}, {beta2}, {t}")


@proof("T5", method="derivation", domain="1 to 5 steps, all gradients and beta1")
def energy_bound_is_jensens() -> None:
    """(sum a_i) sum a_i g_i^2 - (sum a_i g_i)^2 is the sum over i < j of a_i a_j (g_i - g_j)^2, where the weights a_i of m^ sum to 1."""
    for t in range(1, 6):
        gradients = sp.symbols(f"g0:{t}", real=True)
        weights = [B1 ** (t - 1 - i) * (1 - B1) / (1 - B1**t) for i in range(t)]
        check_equal(sum(weights), 1, f"weights, t={t}")
        check_equal(
            recursion(list(gradients))[0], sum(a * g for a, g in zip(weights, gradients, strict=True)), f"m, t={t}"
        )
        mean = sum(a * g for a, g in zip(weights, gradients, strict=True))
        energy = sum(a * g**2 for a, g in zip(weights, gradients, strict=True))
        pairs = [(i, j) for i in range(t) for j in range(i + 1, t)]
        spread = sum(weights[i] * weights[j] * (gradients[i] - gradients[j]) ** 2 for i, j in pairs)
        check_equal(energy - mean**2, spread, f"t={t}")


@proof("T5", method="derivation", domain="1 to 5 steps, any schedule")
def decay_unrolls() -> None:
    """w_t = (1 - x_t) w_{t-1} - s_t gives w_T - w_0 = -(1 - prod(1-x_t)) w_0 - sum s_t prod_{j>t}(1-x_j).

    With 0 <= x <= 1 no factor of an s_t exceeds 1, so |w_T - w_0| <= (1 - prod) |w_0| + sum |s_t|.
    """
    w_0 = sp.Symbol("w_0")
    for steps in range(1, 6):
        x, s = sp.symbols(f"x0:{steps}"), sp.symbols(f"s0:{steps}")
        w = w_0
        for rate, step in zip(x, s, strict=True):
            w = (1 - rate) * w - step
        left = [sp.prod([1 - rate for rate in x[i + 1 :]]) for i in range(steps)]
        whole = sp.prod([1 - rate for rate in x])
        claimed = -(1 - whole) * w_0 - sum(a * b for a, b in zip(s, left, strict=True))
        assert sp.expand((w - w_0) - claimed) == 0, f"T={steps}"


@proof("T5", method="derivation", domain="1 to 5 steps, all gradients, betas and u in (0, 1)")
def rounded_states_are_other_betas() -> None:
    """b1 (1+u) and b2 (1-u)^2 are the betas of the largest m and the smallest v under roundings by 1 +- u.

    All terms are of one sign once gradients are |g|, so each rounding is at its end; Cauchy-Schwarz then gives the
    square of `rounded_states_ratio_upper_bound` without bias correction, kernel and denominator.
    """
    u = sp.Symbol("u", positive=True)
    more, less = B1 * (1 + u), B2 * (1 - u) ** 2
    for t in range(1, 6):
        sizes = sp.symbols(f"g0:{t}", positive=True)
        m = v = sp.Integer(0)
        for g in reversed(sizes):
            m, v = (B1 * m + (1 - B1) * g) * (1 + u), (B2 * v * (1 - u) + (1 - B2) * g**2) * (1 - u)
        check_equal(m, (1 - B1) * (1 + u) * sum(more**k * g for k, g in enumerate(sizes)), f"m, t={t}")
        check_equal(v, (1 - B2) * (1 - u) * sum(less**k * g**2 for k, g in enumerate(sizes)), f"v, t={t}")
        q = more**2 / less
        front = (1 - B1) ** 2 * (1 + u) ** 2 / ((1 - B2) * (1 - u))
        extremal = {g: (more / less) ** k for k, g in enumerate(sizes)}
        check_equal((m**2 / v).subs(extremal), front * sum(q**k for k in range(t)), f"attained, t={t}")


@proof("T5", method="derivation", domain="every t, momentum in (0, 1), any dampening")
def sgd_momentum_is_geometric() -> None:
    """b_t = mu^(t-1) + (1-tau)(1-mu^(t-1))/(1-mu) solves b_1 = 1, b_t = mu b_{t-1} + 1 - tau; and is the code's."""
    mu, tau, t = sp.symbols("mu tau t", positive=True)
    size = mu ** (t - 1) + (1 - tau) * (1 - mu ** (t - 1)) / (1 - mu)
    assert sp.simplify(size.subs(t, 1) - 1) == 0
    assert sp.simplify(size.subs(t, t + 1) - mu * size - (1 - tau)) == 0
    for momentum, dampening, step in product((0.5, 0.9), (0.0, 0.25), (1, 2, 30)):
        point = {mu: sp.Rational(momentum), tau: sp.Rational(dampening), t: step}
        bound = sgd_step_upper_bound(1.0, step, 1.0, momentum, dampening)
        check_code(bound, size.subs(point), f"{point}")


@proof("T5", method="derivation", domain="rank 1 to 4, one entry of the product")
def lora_change_expands() -> None:
    """B'A' - BA = dB A + B dA + dB dA; equal entries at their bounds make it rank (dB a + b dA + dB dA)."""
    for rank in range(1, 5):
        b, a, db, da = (sp.symbols(f"{name}0:{rank}") for name in ("b", "a", "db", "da"))
        terms = list(zip(b, a, db, da, strict=True))
        change = sum((x + dx) * (y + dy) - x * y for x, y, dx, dy in terms)
        assert sp.expand(change - sum(dx * y + x * dy + dx * dy for x, y, dx, dy in terms)) == 0
        sizes = (0.25, 0.5, 0.125, 2.0)
        point = {v: sp.Rational(s) for vs, s in zip((b, a, db, da), sizes, strict=True) for v in vs}
        check_code(lora_change_upper_bound(*sizes, rank), sp.sympify(change).subs(point), f"rank {rank}")
