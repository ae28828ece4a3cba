"""T14 over the reals: the code's own split, run on symbolic values, is the one that Shapley's axioms single out."""

# pyright: reportOperatorIssue=false
# z3 declares unions of every kind of expression, and sums of those that have no sum.
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import z3

from unforgotten.theory.claims import proof
from unforgotten.theory.models.decomposition import LostEffect, lost_effect
from unforgotten.theory.proofs.smt import Statement, prove

Split = Callable[..., LostEffect]
NAMES = ("w", "w_new", "q", "q_new", "w_plus_d", "q_plus_delta")


class Effects(NamedTuple):
    """What is left of the effect of the update once a set of the two replacements is made."""

    neither: Any
    gated: Any  # D in place of delta
    shifted: Any  # Q(w) in place of w
    both: Any


def _values() -> dict[str, Any]:
    return {name: z3.Real(name) for name in NAMES}


def _effects(f: dict[str, Any]) -> Effects:
    return Effects(
        neither=f["w_new"] - f["w"],
        gated=f["w_plus_d"] - f["w"],
        shifted=f["q_plus_delta"] - f["q"],
        both=f["q_new"] - f["q"],
    )


def no_remainder_statement(split: Split = lost_effect) -> Statement:
    """State that gating + base shift = total = [F(w') - F(w)] - [F(Q(w')) - F(Q(w))]."""
    f = _values()
    e, s = _effects(f), split(**f)
    return Statement((), z3.And(s.total == e.neither - e.both, s.gating + s.base_shift == s.total))


def two_orders_statement(split: Split = lost_effect) -> Statement:
    """State that each term is the mean, over which replacement comes first, of what its replacement takes."""
    f = _values()
    e, s = _effects(f), split(**f)
    gating = ((e.neither - e.gated) + (e.shifted - e.both)) / 2
    base_shift = ((e.neither - e.shifted) + (e.gated - e.both)) / 2
    return Statement((), z3.And(s.gating == gating, s.base_shift == base_shift))


def symmetric_statement(split: Split = lost_effect) -> Statement:
    """State that exchanging what the two replacements do alone exchanges the two terms."""
    f = _values()
    e, s = _effects(f), split(**f)
    exchanged = {**f, "w_plus_d": f["w"] + e.shifted, "q_plus_delta": f["q"] + e.gated}
    t = split(**exchanged)
    return Statement((), z3.And(t.gating == s.base_shift, t.base_shift == s.gating))


def null_statement(split: Split = lost_effect) -> Statement:
    """State that a replacement that changes nothing, alone or after the other, has the term 0."""
    f = _values()
    e, s = _effects(f), split(**f)
    no_gating = z3.And(e.gated == e.neither, e.both == e.shifted)
    no_shift = z3.And(e.shifted == e.neither, e.both == e.gated)
    return Statement((), z3.And(z3.Implies(no_gating, s.gating == 0), z3.Implies(no_shift, s.base_shift == 0)))


def _null_for_basis(g: list[Any], b: list[Any]) -> list[Any]:
    """Return the null rules as equations in the coefficients of (neither, gated, shifted, both)."""
    return [g[0] + g[1] == 0, g[2] + g[3] == 0, b[0] + b[2] == 0, b[1] + b[3] == 0]


def unique_statement(*, symmetric: bool = True) -> Statement:
    """State that a linear split without remainder, symmetric, 0 for a null replacement, has Shapley's coefficients."""
    g, b = ([z3.Real(f"{name}{i}") for i in range(4)] for name in ("g", "b"))
    whole = [x + y == t for x, y, t in zip(g, b, (1, 0, 0, -1), strict=True)]
    swap = [g[0] == b[0], g[1] == b[2], g[2] == b[1], g[3] == b[3]] if symmetric else []
    half = z3.Q(1, 2)
    shapley = [x == s * half for x, s in zip(g, (1, -1, 1, -1), strict=True)]
    return Statement((*whole, *_null_for_basis(g, b), *swap), z3.And(shapley))


@proof("T14", method="smt", domain="any six real values of F")
def split_has_no_remainder() -> None:
    """Gating + base shift = [F(w') - F(w)] - [F(Q(w')) - F(Q(w))], by the code's own function."""
    prove(no_remainder_statement())


@proof("T14", method="smt", domain="any six real values of F")
def split_is_the_mean_over_both_orders() -> None:
    """Each term is the mean of what its replacement takes when it comes first and when it comes second."""
    prove(two_orders_statement())


@proof("T14", method="smt", domain="any six real values of F; every linear split")
def split_is_the_only_fair_one() -> None:
    """Symmetric, 0 for a replacement that does nothing, and the only linear split without remainder that is both."""
    prove(symmetric_statement(), null_statement(), unique_statement())
