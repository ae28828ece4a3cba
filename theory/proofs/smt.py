"""Ask z3 for a counterexample, over the reals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import z3

EFFORT = 50_000_000  # z3's own count of steps, so that the verdict does not depend on how busy the machine is


class Statement(NamedTuple):
    """`assumptions` imply `conclusion`, for all real values of the free variables."""

    assumptions: tuple[Any, ...]
    conclusion: Any


def reals(name: str, count: int) -> list[Any]:
    """Return the variables name0 … name{count-1}."""
    return [z3.Real(f"{name}{i}") for i in range(count)]


def size(x: Any) -> Any:
    """Return |x|."""
    return z3.If(x >= 0, x, -x)


def largest(xs: Sequence[Any]) -> Any:
    """Return max(xs)."""
    found = xs[0]
    for x in xs[1:]:
        found = z3.If(x > found, x, found)
    return found


def count(conditions: Sequence[Any]) -> Any:
    """Count the conditions that hold."""
    return z3.Sum([z3.If(c, z3.RealVal(1), z3.RealVal(0)) for c in conditions])


def counterexample(statement: Statement) -> dict[str, str] | None:
    """Find values that satisfy the assumptions and break the conclusion; None if there are none.

    Raises:
        AssertionError: z3 gives up, or the assumptions exclude one another and the statement says nothing.
    """
    assert _solve([*statement.assumptions]) is not None, "the assumptions exclude one another"
    return _solve([*statement.assumptions, z3.Not(statement.conclusion)])


def _solve(constraints: list[Any]) -> dict[str, str] | None:
    solver = z3.Solver()
    solver.set("rlimit", EFFORT)
    solver.add(*constraints)
    verdict = solver.check()
    assert verdict != z3.unknown, f"z3 gives up: {solver.reason_unknown()}"
    if verdict == z3.unsat:
        return None
    model = solver.model()
    return {d.name(): str(model[d]) for d in model.decls() if d.arity() == 0}


def prove(*statements: Statement) -> None:
    """Assert that every statement holds.

    Raises:
        AssertionError: one is refuted, void or undecided.
    """
    for statement in statements:
        found = counterexample(statement)
        assert found is None, f"refuted by {found}"
