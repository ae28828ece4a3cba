"""T5, exactly in rationals: the largest bias-corrected AdamW step over lr, and that it is attained."""

# pyright: reportOperatorIssue=false
# z3 declares unions of every kind of expression, and sums of those that have no sum.
from __future__ import annotations

from fractions import Fraction

import z3

from unforgotten.theory.claims import proof
from unforgotten.theory.geometry.adamw import adamw_ratio_upper_bound
from unforgotten.theory.proofs.smt import Statement, prove, reals

BETA1, BETA2 = Fraction(9, 10), Fraction(999, 1000)
STEPS = (1, 2, 3, 4)


def moment_weights(t: int) -> tuple[list[Fraction], list[Fraction]]:
    """Return the shares of g_1 … g_t in the bias-corrected first moment, and of their squares in the second."""
    first, second = ([(1 - b) * b ** (t - i) / (1 - b**t) for i in range(1, t + 1)] for b in (BETA1, BETA2))
    return first, second


def ratio_sq(t: int) -> Fraction:
    """Return c_t^2 = (1-b2^t)/(1-b1^t)^2 (1-b1)^2/(1-b2) (1-r^t)/(1-r), r = b1^2/b2."""
    r = BETA1**2 / BETA2
    corrections = (1 - BETA2**t) / (1 - BETA1**t) ** 2
    return corrections * (1 - BETA1) ** 2 / (1 - BETA2) * (1 - r**t) / (1 - r)


def step_statement(t: int, bound_sq: Fraction | None = None) -> Statement:
    """State that m^_t^2 <= c_t^2 v^_t for all gradients: no step is larger than lr c_t."""
    bound = ratio_sq(t) if bound_sq is None else bound_sq
    first, second = moment_weights(t)
    g = reals("g", t)
    m = z3.Sum([z3.Q(a.numerator, a.denominator) * x for a, x in zip(first, g, strict=True)])
    v = z3.Sum([z3.Q(b.numerator, b.denominator) * x * x for b, x in zip(second, g, strict=True)])
    return Statement((), m * m <= z3.Q(bound.numerator, bound.denominator) * v)


@proof("T5", method="smt", domain="steps 1 to 4 at the default betas, all real gradients")
def no_step_exceeds_its_ratio() -> None:
    """|m^_t| <= c_t sqrt(v^_t); with 1 in place of c_t it is false from t = 2 on."""
    prove(*(step_statement(t) for t in STEPS))


@proof("T5", method="exact", domain="steps 1 to 100 at the default betas")
def extremal_gradients_attain_the_ratio() -> None:
    """g_i = (b1/b2)^(t-i) gives m^_t^2 = c_t^2 v^_t, and the code's c_t is above, by less than 2^-40.

    With sum a_i^2 / b_i = c_t^2 this is the case of equality of Cauchy-Schwarz, which is the bound for every t.
    """
    for t in range(1, 101):
        first, second = moment_weights(t)
        g = [(BETA1 / BETA2) ** (t - i) for i in range(1, t + 1)]
        m = sum(a * x for a, x in zip(first, g, strict=True))
        v = sum(b * x * x for b, x in zip(second, g, strict=True))
        assert m**2 == ratio_sq(t) * v, f"t={t}: not attained"
        cauchy_schwarz = sum(a * a / b for a, b in zip(first, second, strict=True))
        assert cauchy_schwarz == ratio_sq(t), f"t={t}: no bound"
        code = Fraction(adamw_ratio_upper_bound(t, float(BETA1), float(BETA2))) ** 2
        assert ratio_sq(t) <= code <= ratio_sq(t) * (1 + Fraction(1, 2**39)), f"t={t}: the code"
