"""What a comparison with a library's GPTQ needs: its factor of the inverse Hessian, and where two roundings may differ.

A library takes the factor from torch: another LAPACK call rounds it otherwise, and then codes near a tie differ. With
the factor given, all of a block of 128 columns is determined. Beyond it libraries multiply matrices, whose sums a BLAS
orders; there a row may differ from its first code at a tie on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.formats.gptq import GPTQ_RULES, GptqRule, Rounded, column_order, fit_groups, round_columns
from unforgotten.theory.formats.group_grids import GroupGrid
from unforgotten.verification.chance import rng_for
from unforgotten.verification.oracles import U32

Array = NDArray[Any]


class Problem(NamedTuple):
    """Float32 weights (8, columns) and inputs (tokens, columns), one input dead."""

    w: Array
    x: Array


class Library(NamedTuple):
    """H as it was before quantizing, values, and the parameters of every group (rows, groups)."""

    h: Array
    values: Array
    scale: Array
    zero: Array
    group: Array


def rule_named(name: str, bits: int, symmetric: bool, order: Any, static: bool, size: int | None) -> GptqRule:
    """Return the GPTQ rule of a library with these settings."""
    return replace(GPTQ_RULES[name], bits=bits, symmetric=symmetric, order=order, static=static, group_size=size)


def problem(columns: int, case: object) -> Problem:
    """Draw inputs of unequal sizes with a direction that they share, as those of language models have."""
    rng = rng_for("gptq", columns, case)
    x = rng.normal(size=(2 * columns, columns)) + 2 * rng.normal(size=(2 * columns, 1))
    return _problem(rng, x * np.exp(0.3 * rng.normal(size=columns)))


def well_conditioned_problem(columns: int, case: object) -> Problem:
    """Draw many independent inputs: roundings are carried on little, so that few ties are in doubt."""
    rng = rng_for("gptq, well conditioned", columns, case)
    return _problem(rng, rng.normal(size=(16 * columns, columns)))


def _problem(rng: np.random.Generator, x: Array) -> Problem:
    columns = x.shape[1]
    x[:, columns // 3] = 0
    return Problem(rng.normal(0, 0.02, (8, columns)).astype(np.float32), x.astype(np.float32))


def torch_factor(h: Array, damping: float) -> Array:
    """Return U, upper triangular with H^-1 = U'U, by the libraries' three LAPACK calls; dead columns get H_ii = 1."""
    import torch

    damped = torch.from_numpy(h.copy())
    dead = torch.diag(damped) == 0
    damped[dead, dead] = 1
    damped.diagonal().add_(damping * torch.diag(damped).mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return np.asarray(torch.linalg.cholesky(inverse, upper=True).numpy())


def given_factor(w: Array, h: Array, rule: GptqRule) -> tuple[Rounded, Array]:
    """Round by the reference on torch's factor: the result in the columns' own order, and the order of rounding.

    Args:
        w: float32 (rows, columns).
        h: the library's Hessian, not damped, float32 (columns, columns).
        rule: the variant.
    """
    dead = np.diag(h) == 0
    h = h + np.diag(dead).astype(h.dtype)
    order = column_order(np.diag(h), rule)
    alive = np.where(dead, np.float32(0), w)
    grid = None
    if rule.static or rule.group_size is None:
        whole = fit_groups(w if rule.fit_dead or rule.group_size is None else alive, rule)
        grid = GroupGrid(whole.scale[:, order], whole.zero[:, order])
    factor = torch_factor(h[order][:, order], rule.damping)
    result = round_columns(alive[:, order], factor, rule, grid)
    back = np.argsort(order)
    return Rounded(*(np.ascontiguousarray(a[:, back]) for a in result)), order


def assert_same(ours: Rounded, theirs: Library) -> None:
    """Assert that values, scales and zero points of every weight are equal."""
    assert np.array_equal(ours.values, theirs.values)
    assert np.array_equal(ours.scale, theirs.scale[:, theirs.group])
    assert np.array_equal(ours.zero, theirs.zero[:, theirs.group])


def assert_same_up_to_ties(ours: Rounded, order: Array, values: Array, h: Array, rule: GptqRule) -> float:
    """Assert that in each row the first code that differs is at a tie, and values before it agree but for roundings.

    A weight v is off by at most n u cond(H) max|v|, n columns: a backward error of n roundings, carried through the
    inverse. In code units max|v| is 2^bits at most, so a tie is a ratio within `slack = n u cond(H) 2^bits` of one.

    Returns:
        The share of codes that are compared: those up to the first that differs.
    """
    n, alive = len(h), np.flatnonzero(np.diag(h))  # a dead column is coupled to no other
    damped = h[alive][:, alive].astype(float) + rule.damping * np.diag(h).mean() * np.eye(len(alive))
    slack = n * U32 * float(np.linalg.cond(damped)) * 2**rule.bits
    assert slack < 0.1, "the comparison must have power"
    off = (np.abs(values - ours.values) > 0.5 * ours.scale)[:, order]
    ratio = (ours.compensated / ours.scale)[:, order]
    at_tie = np.abs(np.abs(ratio - np.floor(ratio)) - 0.5) <= slack
    first = np.where(off.any(axis=1), off.argmax(axis=1), n)
    for row in np.flatnonzero(first < n):
        assert at_tie[row, first[row]], f"row {row} differs at column {first[row]}, away from a tie"
    before = np.arange(n) < first[:, None]
    close = np.abs(values - ours.values) <= slack * ours.scale * 2**rule.bits
    assert close[:, order][before].all()
    return float(before.mean())
