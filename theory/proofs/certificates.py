"""T15 and T12 over the reals: greedy stability, the AUC's margin, total variation, and a tail for unequal coins.

A proof takes nothing and returns nothing; it raises AssertionError where its statement fails.
A `…_statement` takes what a wrong version would have instead, and returns a formula for z3.

>>> greedy_choice_is_stable()
"""

# pyright: reportOperatorIssue=false
# z3 declares unions of every kind of expression, and sums of those that have no sum.
from __future__ import annotations

from fractions import Fraction
from itertools import combinations, product
from typing import Any

import z3

from unforgotten.theory.claims import proof
from unforgotten.theory.proofs.smt import Statement, largest, prove, reals, size

SIZES = (1, 2, 3, 4)
PAIRS = ((1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 2))


def _changed(xs: list[Any], ys: list[Any], radius: Any) -> list[Any]:
    return [size(y - x) <= radius for x, y in zip(xs, ys, strict=True)]


def greedy_statement(vocabulary: int, *, factor: int = 2, strict: bool = True) -> Statement:
    """State that token 0 still leads if it led all others by more than 2r and no logit changes by more than r."""
    before, after, r = reals("z", vocabulary), reals("z_new", vocabulary), z3.Real("r")
    leads = [before[0] - z > factor * r if strict else before[0] - z >= factor * r for z in before[1:]]
    still = z3.And([after[0] > z for z in after[1:]])
    return Statement((*_changed(before, after, r), *leads), still)


def spread_statement(vocabulary: int) -> Statement:
    """State that token 0 still leads if it led all others by more than max - min of the logits' changes."""
    before, after = reals("z", vocabulary), reals("z_new", vocabulary)
    change = [b - a for a, b in zip(before, after, strict=True)]
    spread = largest(change) + largest([-c for c in change])
    leads = tuple(before[0] - z > spread for z in before[1:])
    return Statement(leads, z3.And([after[0] > z for z in after[1:]]))


@proof("T15", method="smt", domain="vocabularies of 2 to 4; one rival at a time, so any vocabulary")
def greedy_choice_is_stable() -> None:
    """A top-two gap above 2 max|logit change|, or above the change's spread, keeps the greedy token; at exactly 2 max|change| a tie is possible."""  # noqa: D401
    prove(*(greedy_statement(n) for n in SIZES[1:]), *(spread_statement(n) for n in SIZES[1:]))


def _win(a: Any, b: Any) -> Any:
    return z3.If(a > b, z3.RealVal(1), z3.If(a == b, z3.Q(1, 2), z3.RealVal(0)))


def auc_statement(members: int, others: int, *, factor: int = 2, ends_included: bool = True) -> Statement:
    """State that |AUC' - AUC| <= share of pairs whose scores lie within 2r, if no score changes by more than r."""
    m, o, m_new, o_new = (
        reals(name, n) for name, n in (("m", members), ("o", others), ("m_new", members), ("o_new", others))
    )
    r = z3.Real("r")
    wins, wins_new = (z3.Sum([_win(a, b) for a in x for b in y]) for x, y in ((m, o), (m_new, o_new)))
    gaps = [size(a - b) for a in m for b in o]
    close = [g <= factor * r if ends_included else g < factor * r for g in gaps]
    mass = z3.Sum([z3.If(c, z3.RealVal(1), z3.RealVal(0)) for c in close])
    return Statement(tuple(_changed(m + o, m_new + o_new, r)), size(wins_new - wins) <= mass)


@proof("T15", method="smt", domain="up to 3 x 2 scores; one pair at a time, so any number")
def auc_moves_by_close_pairs() -> None:
    """|AUC' - AUC| <= mass of the pairs with |s_i - s_j| <= 2 max|score change|, ends included, ties counting half."""
    prove(*(auc_statement(*pair) for pair in PAIRS))


def auc_range_statement(members: int, others: int, *, share: Fraction = Fraction(1)) -> Statement:
    """State that AUC(m - r, o + r) <= AUC(m', o') <= AUC(m + r, o - r), if no score changes by more than r."""
    m, o, m_new, o_new = (
        reals(name, n) for name, n in (("m", members), ("o", others), ("m_new", members), ("o_new", others))
    )
    r = z3.Real("r")
    c = r * z3.Q(share.numerator, share.denominator)
    low, now, high = (
        z3.Sum([_win(a, b) for a in x for b in y])
        for x, y in (([a - c for a in m], [b + c for b in o]), (m_new, o_new), ([a + c for a in m], [b - c for b in o]))
    )
    return Statement(tuple(_changed(m + o, m_new + o_new, r)), z3.And(low <= now, now <= high))


@proof("T15", method="smt", domain="up to 3 x 2 scores; one pair at a time, so any number")
def auc_lies_between_the_extremes() -> None:
    """AUC(m - r, o + r) <= AUC' <= AUC(m + r, o - r): both ends are scores that the bound allows."""
    prove(*(auc_range_statement(*pair) for pair in PAIRS))


def total_variation_statement(outcomes: int, *, factor: Fraction = Fraction(1, 2)) -> Statement:
    """State that |E_p m - E_q m| <= 1/2 sum |p - q| for a metric m in [0, 1]."""
    p, q, m = (reals(name, outcomes) for name in ("p", "q", "m"))
    given = (*(x >= 0 for x in p + q), z3.Sum(p) == 1, z3.Sum(q) == 1, *(z3.And(x >= 0, x <= 1) for x in m))
    gap = z3.Sum([(a - b) * x for a, b, x in zip(p, q, m, strict=True)])
    distance = z3.Sum([size(a - b) for a, b in zip(p, q, strict=True)])
    return Statement(given, size(gap) <= z3.Q(factor.numerator, factor.denominator) * distance)


@proof("T15", method="smt", domain="2 to 4 outcomes, every metric in [0, 1]")
def metric_moves_by_total_variation() -> None:
    """|E_p m - E_q m| <= TV(p, q) = 1/2 sum |p_i - q_i|."""
    prove(*(total_variation_statement(n) for n in SIZES[1:]))


def affinity_statement(outcomes: int, *, factor: int = 1) -> Statement:
    """State that TV^2 + (sum sqrt(p q))^2 <= 1, in the roots a = sqrt(p), b = sqrt(q)."""
    a, b = reals("a", outcomes), reals("b", outcomes)
    given = (*(x >= 0 for x in a + b), z3.Sum([x * x for x in a]) == 1, z3.Sum([x * x for x in b]) == 1)
    tv = z3.Sum([size(x * x - y * y) for x, y in zip(a, b, strict=True)]) / 2
    affinity = z3.Sum([x * y for x, y in zip(a, b, strict=True)])
    return Statement(given, factor * tv * tv + affinity * affinity <= 1)


def merging_statement(*, factor: int = 1) -> Statement:
    """State that sqrt(p1 q1) + sqrt(p2 q2) <= sqrt((p1 + p2) (q1 + q2)), in the roots."""
    (a, b), (c, d) = reals("a", 2), reals("b", 2)
    given = tuple(x >= 0 for x in (a, b, c, d))
    merged = (a * a + b * b) * (c * c + d * d)
    return Statement(given, factor * (a * c + b * d) * (a * c + b * d) <= merged)


@proof("T15", method="smt", domain="any number of outcomes, by merging them into {p > q} and the rest")
def total_variation_meets_affinity() -> None:
    """TV^2 <= 1 - (sum sqrt(p_i q_i))^2: with -2 log(sum sqrt(p q)) <= KL (Jensen), Bretagnolle-Huber.

    Merging two outcomes never lowers the affinity, and keeps TV where p - q has one sign: two outcomes are the worst.
    """
    prove(merging_statement(), affinity_statement(2))


def count_probability(p: list[Any], heads: int) -> Any:
    """Return P[S = heads] for independent coins p, a polynomial in p."""
    n = len(p)
    return z3.Sum(
        [z3.Product([p[i] if i in up else 1 - p[i] for i in range(n)]) for up in combinations(range(n), heads)]
    )


def moment_statement(n: int) -> Statement:
    """Sum over j of P[S = j] z^j = prod (1 - p_i + p_i z), for independent coins."""
    p, z = reals("p", n), z3.Real("z")
    terms = [count_probability(p, j) * z3.Product([z3.RealVal(1), *[z] * j]) for j in range(n + 1)]
    return Statement((), z3.Sum(terms) == z3.Product([1 - x + x * z for x in p]))


def markov_statement(n: int, k: int, *, least_base: int = 1) -> Statement:
    """State that z^k P[S >= k] <= sum over j of P[S = j] z^j for z >= 1."""
    mass, z = reals("mass", n + 1), z3.Real("z")
    powers = [z3.Product([z3.RealVal(1), *[z] * j]) for j in range(n + 1)]
    given = (z >= least_base, *(m >= 0 for m in mass))
    moment = z3.Sum([m * power for m, power in zip(mass, powers, strict=True)])
    return Statement(given, powers[k] * z3.Sum(mass[k:]) <= moment)


def mean_statement(n: int, *, factor: Fraction = Fraction(1)) -> Statement:
    """State that the product of a_i = 1 - p_i + p_i z >= 0 is at most (mean a)^n: unequal coins spread less."""
    a = reals("a", n)
    mean = z3.Sum(a) / n * z3.Q(factor.numerator, factor.denominator)
    return Statement(tuple(x >= 0 for x in a), z3.Product(a) <= z3.Product([mean] * n))


def check_chernoff(n: int, k: int, p: Fraction, *, trials: int | None = None) -> None:
    """Check z^-k (1 - p + p z)^n = exp(-n KL(x || p)) at z = x (1-p) / (p (1-x)), x = k/n, exact in rationals.

    Raises:
        AssertionError: the two differ, or z < 1 although x >= p.
    """
    x = Fraction(k, n)
    z = x * (1 - p) / (p * (1 - x))
    divergence = (p / x) ** k * ((1 - p) / (1 - x)) ** ((trials or n) - k)
    assert (1 - p + p * z) ** n / z**k == divergence, f"n={n}, k={k}, p={p}"
    assert z >= 1, f"n={n}, k={k}, p={p}"


@proof("T12", method="smt", domain="1 to 4 coins of any probabilities, every count")
def tail_is_bounded_by_its_moment() -> None:
    """P[S >= k] <= z^-k prod(1 - p_i + p_i z) <= z^-k (1 - p + p z)^n for every z >= 1 and the mean p.

    The first step is Markov's inequality, the second that of the means; the p-value takes the best z.
    """
    prove(*(moment_statement(n) for n in SIZES))
    prove(*(markov_statement(n, k) for n in SIZES for k in range(1, n + 1)))
    prove(*(mean_statement(n) for n in SIZES))


@proof("T12", method="exact", domain="n up to 12, every count, mean probabilities j/24 below k/n")
def best_moment_is_the_divergence() -> None:
    """min_z z^-k (1 - p + p z)^n is exp(-n KL(k/n || p)), and its z is at least 1 where k/n >= p."""
    for n, j in product(range(2, 13), range(1, 24)):
        for k in range(1, n):
            if Fraction(j, 24) <= Fraction(k, n):
                check_chernoff(n, k, Fraction(j, 24))
