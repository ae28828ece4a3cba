"""T17 for two Hessians: two models, each rounded by GPTQ with its own calibration, order of columns and grid."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from unforgotten.theory.formats.gptq import GptqRule, inverse_factor, round_columns
from unforgotten.theory.formats.group_grids import GroupGrid
from unforgotten.theory.models.lattice import Rounding, lost_update_of_two_upper_bound, lost_update_upper_bound
from unforgotten.verification.chance import rng_for
from unforgotten.verification.oracles import U64
from unforgotten.verification.recording.tallies import record

SIZES = st.integers(1, 8)
SEEDS = st.integers(0, 2**32)


def hessian(n: int, *seed: object) -> NDArray[Any]:
    rng = rng_for("two Hessians", n, *seed)
    a = rng.normal(size=(2 * n, n)) * 2.0 ** rng.uniform(-3, 3, n) + 2 * rng.normal(size=(2 * n, 1))
    return np.asarray(a.T @ a / (2 * n) + 0.05 * np.eye(n))


def run(h: NDArray[Any], *seed: object) -> Rounding:
    """A factor with columns in an order of its own, and steps."""
    rng = rng_for("run", *seed)
    order = rng.permutation(len(h))
    return Rounding(rng.uniform(0.5, 2, len(h)), inverse_factor(h[np.ix_(order, order)]), order)


def rounded(w: NDArray[Any], of: Rounding) -> NDArray[Any]:
    """Values of GPTQ on a grid that never clips: 40 bits around 0; columns of `w` in the common order."""
    ordered = w[:, of.order]
    rule = GptqRule(bits=40, group_size=None)
    grid = GroupGrid(np.broadcast_to(of.step, w.shape), np.full(w.shape, 2.0**39))
    values = np.empty_like(w)
    values[:, of.order] = round_columns(ordered, of.factor, rule, grid).values
    return values


def norm(x: NDArray[Any], h: NDArray[Any]) -> NDArray[Any]:
    return np.sqrt(np.einsum("ri,ij,rj->r", x, h, x))


@given(SIZES, SEEDS, st.floats(0.01, 4))
def test_lost_update_of_two_upper_bound__holds_for_every_update(n: int, seed: int, size: float) -> None:
    h, h_new = hessian(n, seed, 0), hessian(n, seed, 1)
    before, after = run(h, seed, 0), run(h_new, seed, 1)
    rng = rng_for("two updates", n, seed)
    w = rng.uniform(-9, 9, (16, n))
    delta = size * rng.normal(size=w.shape)
    lost = norm(delta - (rounded(w + delta, after) - rounded(w, before)), h)
    bound = lost_update_of_two_upper_bound(before, after)
    slack = 1 + 64 * n * n * U64 * float(np.linalg.cond(h) + np.linalg.cond(h_new))
    assert (lost <= bound * slack).all()
    record("lost_update_of_two_upper_bound", n, seed, size, ratio=float(lost.max() / (bound * slack)))


def test_lost_update_of_two_upper_bound__is_needed() -> None:
    """One Hessian's bound is exceeded where the other model was rounded with another."""
    exceeded = 0
    for seed in range(20):
        h, h_new = hessian(6, seed, 0), hessian(6, seed, 1)
        before, after = run(h, seed, 0), run(h_new, seed, 1)
        w = rng_for("needed", seed).uniform(-9, 9, (400, 6))
        lost = norm(w - rounded(w, before) - (w + 0.25 - rounded(w + 0.25, after)), h)
        exceeded += bool(lost.max() > lost_update_upper_bound(before.step, before.factor))
        assert lost.max() <= lost_update_of_two_upper_bound(before, after) * (1 + 2.0**-30)
    assert exceeded >= 5


@given(SIZES, SEEDS)
def test_lost_update_of_two_upper_bound__of_equal_runs_is_that_of_one(n: int, seed: int) -> None:
    h = hessian(n, seed)
    one = run(h, seed)
    slack = 64 * n * n * U64 * float(np.linalg.cond(h))
    got = lost_update_of_two_upper_bound(one, one)
    assert got == pytest.approx(float(lost_update_upper_bound(one.step, one.factor)), rel=slack, abs=0)


def test_lost_update_of_two_upper_bound__of_diagonal_factors_is_the_formula() -> None:
    """AWQ: H = diag(s^2), U = diag(1/s). lambda_max is the largest quotient of squared scales; exact, powers of two."""
    s, s_new = np.array([1.0, 2.0, 4.0]), np.array([2.0, 1.0, 1.0])
    step = np.array([0.5, 1.0, 0.25])
    order = np.array([2, 0, 1])
    before = Rounding(step, np.diag(1 / s), np.arange(3))
    after = Rounding(step[order], np.diag(1 / s_new[order]), order)
    squares = [sum(Fraction(a * b) ** 2 for a, b in zip(step, t, strict=True)) for t in (s, s_new)]
    want = (float(squares[0]) ** 0.5 + 4 * float(squares[1]) ** 0.5) / 2
    assert lost_update_of_two_upper_bound(before, after) == pytest.approx(want, rel=64 * U64, abs=0)


def test_lost_update_of_two_upper_bound__refuses_runs_that_do_not_fit() -> None:
    one = run(hessian(3, 0), 0)
    with pytest.raises(ValueError, match="factors must have one shape"):
        lost_update_of_two_upper_bound(one, run(hessian(2, 0), 0))
    with pytest.raises(ValueError, match="order must be a permutation of 3"):
        lost_update_of_two_upper_bound(one, one._replace(order=np.array([0, 1, 1])))


def test_lost_update_of_two_upper_bound__minds_the_order_of_columns() -> None:
    """Another order of the columns changes the bound."""
    h, h_new = hessian(5, "order", 0), hessian(5, "order", 1)
    before, after = run(h, "order", 0), run(h_new, "order", 1)
    other = after._replace(order=after.order[::-1])
    assert lost_update_of_two_upper_bound(before, after) != lost_update_of_two_upper_bound(before, other)
