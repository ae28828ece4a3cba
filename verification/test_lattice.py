from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from unforgotten.theory.formats.gptq import (
    GPTQ_RULES,
    GptqResult,
    GptqRule,
    calibration_hessian,
    gptq,
    inverse_factor,
    round_columns,
)
from unforgotten.theory.formats.group_grids import GroupGrid
from unforgotten.theory.models.lattice import (
    error_norm_upper_bound,
    is_swallowed,
    lost_update_upper_bound,
    nearest_plane_loss,
    one_feature_shift,
    pushed_shift,
    sequential_cell,
    sequential_flip_probability,
    sequential_loss_variance,
    skew,
)
from unforgotten.theory.proofs.lattice import babai
from unforgotten.theory.proofs.lattice import nearest_plane as rational_plane
from unforgotten.verification.chance import assert_mean, detectable_gap, rng_for
from unforgotten.verification.oracles import U64

RULES = [
    replace(GPTQ_RULES[name], bits=bits, group_size=size, block=3, symmetric=symmetric)
    for name in GPTQ_RULES
    for bits, size, symmetric in ((4, 4, True), (2, 3, False), (3, None, True))
]
SIZES = st.integers(1, 8)
SEEDS = st.integers(0, 2**32)
TRIALS = 200_000


class Problem(NamedTuple):
    """A Hessian with its factor, and steps."""

    h: NDArray[Any]
    factor: NDArray[Any]
    step: NDArray[Any]


def problem(n: int, seed: object) -> Problem:
    rng = rng_for("lattice", n, seed)
    a = rng.normal(size=(2 * n, n)) + 2 * rng.normal(size=(2 * n, 1))
    h = a.T @ a / (2 * n) + 0.05 * np.eye(n)
    return Problem(h, inverse_factor(h), rng.uniform(0.5, 2, n))


def nearest_plane(w: NDArray[Any], p: Problem) -> tuple[NDArray[Any], NDArray[Any]]:
    """Values and residuals on a grid that never clips: 40 bits around 0."""
    rule = GptqRule(bits=40, group_size=None)
    grid = GroupGrid(np.broadcast_to(p.step, w.shape), np.full(w.shape, 2.0**39))
    rounded = round_columns(w, p.factor, rule, grid)
    return rounded.values, rounded.compensated - rounded.values


def norm_slack(n: int, p: Problem) -> float:
    """Relative error of e'He computed two ways: n^2 products, a factorization and an inverse."""
    return 32 * n * n * U64 * float(np.linalg.cond(p.h))


@given(SIZES, SEEDS)
def test_skew__is_unit_lower_triangular_and_carries_the_norm(n: int, seed: int) -> None:
    p = problem(n, seed)
    m = skew(p.factor)
    assert np.array_equal(m, np.tril(m))
    assert np.abs(np.diag(m) - 1).max() <= 2 * U64
    again = m.T @ np.diag(np.diag(p.factor) ** -2.0) @ m
    assert np.abs(again - p.h).max() <= norm_slack(n, p) * np.abs(p.h).max()


@given(SIZES, SEEDS)
def test_nearest_plane_loss__is_the_output_error(n: int, seed: int) -> None:
    p = problem(n, seed)
    w = rng_for("loss", n, seed).uniform(-9, 9, (4, n))
    values, residual = nearest_plane(w, p)
    loss = np.einsum("ri,ij,rj->r", w - values, p.h, w - values)
    assert np.abs(nearest_plane_loss(residual, p.factor) - loss).max() <= norm_slack(n, p) * (
        loss.max() + np.square(w).max() * p.h.max() * U64
    )


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_nearest_plane_loss__holds_where_codes_are_clipped(rule: GptqRule) -> None:
    rng = rng_for("clipped", str(rule))
    w, x = rng.standard_t(2, (3, 8)), rng.normal(size=(24, 8)) + rng.normal(size=(24, 1))
    h = calibration_hessian(x)
    result = gptq(w, h, rule)
    damped = h + rule.damping * np.diag(h).mean() * np.eye(8)
    loss = np.einsum("ri,ij,rj->r", w - result.values, damped, w - result.values)
    residual = (result.compensated - result.values)[:, result.order]
    slack = 32 * 64 * U64 * float(np.linalg.cond(damped))
    assert nearest_plane_loss(residual, result.factor) == pytest.approx(loss, rel=slack)


@given(SIZES, SEEDS)
def test_error_norm_upper_bound__holds_without_clipping(n: int, seed: int) -> None:
    p = problem(n, seed)
    w = rng_for("bound", n, seed).uniform(-9, 9, (50, n))
    _, residual = nearest_plane(w, p)
    loss = np.sqrt(nearest_plane_loss(residual, p.factor))
    assert (loss <= error_norm_upper_bound(p.step, p.factor) * (1 + 2 * n * U64)).all()


@given(SIZES, SEEDS)
def test_error_norm_upper_bound__is_attained_at_a_corner_of_the_cell(n: int, seed: int) -> None:
    p = problem(n, seed)
    signs = rng_for("corner", n, seed).choice([-1.0, 1.0], n) * (1 - 2.0**-30)
    e = np.linalg.solve(skew(p.factor), signs * p.step / 2)
    values, residual = nearest_plane(e[None], p)
    assert np.abs(values).max() == 0
    got = np.sqrt(nearest_plane_loss(residual, p.factor))[0]
    assert got == pytest.approx(error_norm_upper_bound(p.step, p.factor), rel=2.0**-29)


def test_error_norm_upper_bound__fails_where_a_code_is_clipped() -> None:
    """The counterexample that keeps the condition: symmetric 2-bit codes -2 … 1, a weight at +1.5 scale."""
    w = np.array([[1.0, -0.1]])
    result = gptq(w, np.eye(2), GptqRule(bits=2, group_size=None, damping=0.0))
    residual = result.compensated - result.values
    assert result.codes[0, 0] == 3
    step = result.scale[0]
    positive = gptq(np.abs(w), np.eye(2), GptqRule(bits=2, group_size=None, damping=0.0))
    clipped = positive.compensated - positive.values
    bound = error_norm_upper_bound(positive.scale, positive.factor)
    assert np.sqrt(nearest_plane_loss(clipped, positive.factor)) > bound
    assert np.sqrt(nearest_plane_loss(residual, result.factor)) <= error_norm_upper_bound(step, result.factor) * (
        1 + 8 * U64
    )


def quantized(rule: GptqRule, dtype: str) -> tuple[NDArray[Any], NDArray[Any], GptqResult]:
    rng = rng_for("cell", str(rule), dtype)
    w = rng.normal(0, 0.02, (3, 9)).astype(dtype)
    x = rng.normal(size=(30, 9)) + 2 * rng.normal(size=(30, 1))
    x[:, 4] = 0
    h = calibration_hessian(x)
    return w, h, gptq(w, h, rule)


def codes_on_its_grid(w: NDArray[Any], result: GptqResult, rule: GptqRule) -> NDArray[Any]:
    grid = GroupGrid(result.scale[:, result.order], result.zero[:, result.order])
    w = np.where(result.dead, w.dtype.type(0), w)
    with np.errstate(over="ignore", invalid="ignore"):  # a huge weight spoils the columns after it
        codes = round_columns(w[:, result.order], result.factor, rule, grid).codes
    return codes[:, np.argsort(result.order)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_sequential_cell__is_sound_and_maximal_in_the_kernels_floats(rule: GptqRule, dtype: str) -> None:
    """At either end the column keeps its code; one float outside it has another. No margin."""
    w, _, result = quantized(rule, dtype)
    cell = sequential_cell(w, result, rule)
    assert np.array_equal(codes_on_its_grid(w, result, rule), result.codes)
    assert ((cell.lower <= w) & (w <= cell.upper)).all()
    largest = np.finfo(w.dtype).max
    for column in range(w.shape[1]):
        for end, outward in ((cell.lower, -largest), (cell.upper, largest)):
            moved = w.copy()
            moved[:, column] = end[:, column]
            assert np.array_equal(codes_on_its_grid(moved, result, rule)[:, column], result.codes[:, column])
            closed = np.abs(end[:, column]) < largest
            moved[:, column] = np.nextafter(end[:, column], w.dtype.type(outward))
            changed = codes_on_its_grid(moved, result, rule)[:, column] != result.codes[:, column]
            assert np.array_equal(changed, closed)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_sequential_cell__is_unbounded_where_codes_end_and_columns_are_dead(rule: GptqRule) -> None:
    w, _, result = quantized(rule, "float64")
    cell, largest = sequential_cell(w, result, rule), np.finfo(float).max
    top = 2**rule.bits - 1
    assert np.array_equal(cell.lower == -largest, (result.codes == 0) | result.dead)
    assert np.array_equal(cell.upper == largest, (result.codes == top) | result.dead)


@given(SIZES, SEEDS)
def test_sequential_cell__spans_a_parallelepiped_of_the_same_codes(n: int, seed: int) -> None:
    """q + M^-1 u, |u_i| < step_i / 2, has the codes of q and no other point has; its volume is prod step."""
    p = problem(n, seed)
    rng = rng_for("parallelepiped", n, seed)
    q = rng.integers(-5, 6, n) * p.step
    inside = rng.uniform(-0.499, 0.499, (20, n)) * p.step
    inverse = np.linalg.inv(skew(p.factor))
    values, residual = nearest_plane(q + inside @ inverse.T, p)
    slack = 64 * n * n * U64 * np.linalg.cond(skew(p.factor)) * 10
    assert (np.abs(values - q) <= slack).all()
    assert (np.abs(residual - inside) <= slack).all()
    outside = inside.copy()
    outside[:, n // 2] = 0.501 * p.step[n // 2]
    values, _ = nearest_plane(q + outside @ inverse.T, p)
    assert (np.abs(values - q).max(axis=1) >= p.step.min() / 2).all()
    assert abs(np.linalg.det(inverse) - 1) <= slack


@given(SIZES, SEEDS, st.floats(0.01, 3))
def test_is_swallowed__iff_no_value_changes(n: int, seed: int, size: float) -> None:
    p = problem(n, seed)
    rng = rng_for("swallowed", n, seed, size)
    w, delta = rng.uniform(-9, 9, (100, n)), rng.uniform(-size, size, (100, n))
    before, residual = nearest_plane(w, p)
    after, _ = nearest_plane(w + delta, p)
    far = np.abs(np.abs(residual + delta @ skew(p.factor).T) - p.step / 2) > 1e-9  # not at a tie
    same = (after == before).all(axis=1)
    swallowed = is_swallowed(residual, delta, p.step, p.factor)
    assert np.array_equal(swallowed[far.all(axis=1)], same[far.all(axis=1)])


@given(SIZES, SEEDS, st.floats(0.01, 3))
def test_lost_update_upper_bound__holds_for_every_update(n: int, seed: int, size: float) -> None:
    p = problem(n, seed)
    rng = rng_for("lost", n, seed, size)
    w, delta = rng.uniform(-9, 9, (50, n)), rng.uniform(-size, size, (50, n))
    lost = delta - (nearest_plane(w + delta, p)[0] - nearest_plane(w, p)[0])
    norm = np.sqrt(np.einsum("ri,ij,rj->r", lost, p.h, lost))
    bound = lost_update_upper_bound(p.step, p.factor)
    assert (norm <= bound * (1 + norm_slack(n, p))).all()


@given(SIZES, SEEDS)
def test_lost_update_upper_bound__forbids_swallowing_a_larger_update(n: int, seed: int) -> None:
    p = problem(n, seed)
    rng = rng_for("forbid", n, seed)
    w, delta = rng.uniform(-9, 9, (50, n)), rng.normal(size=(50, n))
    norm = np.sqrt(np.einsum("ri,ij,rj->r", delta, p.h, delta))
    delta *= (1.001 * lost_update_upper_bound(p.step, p.factor) / norm)[:, None]
    _, residual = nearest_plane(w, p)
    assert not is_swallowed(residual, delta, p.step, p.factor).any()


@given(SIZES, SEEDS)
def test_pushed_shift__is_what_moves_the_residual(n: int, seed: int) -> None:
    """v'_i - v_i = s_i: column by column, whatever the codes before it did."""
    p = problem(n, seed)
    rng = rng_for("shift", n, seed)
    w, delta = rng.uniform(-9, 9, (20, n)), rng.uniform(-2, 2, (20, n))
    (before, residual), (after, moved) = nearest_plane(w, p), nearest_plane(w + delta, p)
    shift = pushed_shift(delta, after - before, p.factor)
    slack = 64 * n * n * U64 * np.linalg.cond(skew(p.factor)) * 20
    assert np.abs(moved + after - residual - before - shift).max() <= slack


class Gating(NamedTuple):
    """Simulated updates of weights that are uniform on a cell of the lattice."""

    p: Problem
    delta: NDArray[Any]
    survived: NDArray[Any]
    shift: NDArray[Any]


def gate(n: int, seed: int, size: float) -> Gating:
    p = problem(n, seed)
    rng = rng_for("gate", n, seed, size)
    delta = rng.uniform(-size, size, n)
    residual = rng.uniform(-0.5, 0.5, (TRIALS, n)) * p.step
    w = np.linalg.solve(skew(p.factor), residual.T).T
    survived = nearest_plane(w + delta, p)[0] - nearest_plane(w, p)[0]
    return Gating(p, delta, survived, pushed_shift(delta, survived, p.factor))


CASES = [(2, 0, 0.1), (3, 1, 0.5), (5, 2, 0.02), (4, 3, 3.0)]


@pytest.mark.parametrize(("n", "seed", "size"), CASES)
def test_sequential_flip_probability__matches_simulation(n: int, seed: int, size: float) -> None:
    """P[D_i != 0] is the mean of min(|s_i| / step_i, 1), s_i itself random behind the first column."""
    g = gate(n, seed, size)
    flips = (np.abs(g.survived) > g.p.step / 2).astype(float)
    gap = flips - sequential_flip_probability(g.shift, g.p.step)
    for i in range(n):  # in [-1, 1], mean 0
        assert_mean((gap[:, i] + 1) / 2, 0.5)


@pytest.mark.parametrize(("n", "seed", "size"), CASES)
def test_sequential_flip_probability__lets_the_whole_update_through_on_average(n: int, seed: int, size: float) -> None:
    """E[D | delta] = delta: (M (delta - D))_i is the difference of two residuals, in [-step_i, step_i]."""
    g = gate(n, seed, size)
    lost = (g.delta - g.survived) @ skew(g.p.factor).T
    for i in range(n):
        slack = 1e-9  # of the solve, against steps of 0.5 and more
        assert_mean((lost[:, i] / g.p.step[i] + 1) / 2, 0.5, slack=slack)


@pytest.mark.parametrize(("n", "seed", "size"), CASES)
def test_sequential_loss_variance__matches_simulation(n: int, seed: int, size: float) -> None:
    g = gate(n, seed, size)
    lost = g.delta - g.survived
    norm_sq = np.einsum("ri,ij,rj->r", lost, g.p.h, lost)
    top = float(lost_update_upper_bound(g.p.step, g.p.factor)) ** 2
    law = sequential_loss_variance(g.shift, g.p.step, g.p.factor)
    assert (law <= float(error_norm_upper_bound(g.p.step, g.p.factor)) ** 2 * (1 + 8 * U64)).all()
    assert_mean(((norm_sq - law) / top + 1) / 2, 0.5, slack=1e-9)


def test_gating__sample_size_resolves_one_percent() -> None:
    assert 2 * detectable_gap(TRIALS) < 0.04


@given(SIZES, SEEDS, st.floats(2.0**-10, 4))
def test_one_feature_shift__is_the_pushed_update(n: int, seed: int, damping: float) -> None:
    rng = rng_for("feature", n, seed)
    x, delta = rng.uniform(0.5, 2, n), rng.uniform(-1, 1, n)
    h = np.outer(x, x) + damping * np.eye(n)
    expected = delta @ skew(inverse_factor(h)).T
    slack = 64 * n * n * U64 * np.linalg.cond(h)
    assert np.abs(one_feature_shift(x, delta, damping) - expected).max() <= slack


def test_one_feature_shift__refuses_no_damping() -> None:
    with pytest.raises(ValueError, match="damping must be positive"):
        one_feature_shift(np.ones(2), np.ones(2), 0.0)


def exact_gptq(w: list[Fraction], damping: Fraction) -> list[int]:
    """GPTQ on integers 0, ±1, … for eight equal inputs: what column i lost goes to the columns behind it in equal shares."""
    w, codes, n = list(w), [], len(w)
    for i in range(n):
        q = round(w[i])
        codes.append(q)
        remaining = n - i - 1
        for j in range(i + 1, n):
            w[j] += (w[i] - q) / (remaining + damping)
    return codes


def test_is_swallowed__worked_example_of_t11b() -> None:
    """Eight weights at the centre of their zero bins, equal inputs, every weight moved by an eighth of a step.

    Plain rounding returns zeros: gain 0, the output keeps nothing of the update. GPTQ moves one code by one step, and
    the output changes by one step, all of x.delta = 8/8. Its shifts are 1/8 (1 + (i - 1)/(9 - i + damping)): 0.125, 0.143,
    0.167, 0.200, 0.250, 0.333, 0.498, and 0.991 in the last column, which is beyond half a step.
    """
    n, damping, eighth = 8, Fraction(1, 100), Fraction(1, 8)
    codes = exact_gptq([eighth] * n, damping)
    assert [round(eighth)] * n == [0] * n
    assert codes == [0, 0, 0, 0, 0, 0, 0, 1]
    assert sum(codes) == sum([eighth] * n)

    delta = np.full((1, n), 0.125)
    p_h = np.ones((n, n)) + float(damping) * np.eye(n)
    p = Problem(p_h, inverse_factor(p_h), np.ones(n))
    assert nearest_plane(delta, p)[0][0].tolist() == codes
    shift = one_feature_shift(np.ones(n), delta[0], float(damping))
    assert shift.round(3).tolist() == [0.125, 0.143, 0.167, 0.2, 0.25, 0.333, 0.498, 0.991]
    assert not is_swallowed(np.zeros((1, n)), delta, p.step, p.factor)[0]
    uncorrelated = inverse_factor(np.eye(n))
    assert is_swallowed(np.zeros((1, n)), delta, p.step, uncorrelated)[0]


def test_is_swallowed__an_update_orthogonal_to_the_inputs_stays_swallowed() -> None:
    """GPTQ cures T11b for what changes the output on the calibration inputs, and for nothing else."""
    n = 8
    h = np.ones((n, n)) + 0.01 * np.eye(n)
    delta = 0.125 * np.where(np.arange(n) % 2, -1.0, 1.0)[None]
    assert is_swallowed(np.zeros((1, n)), delta, np.ones(n), inverse_factor(h))[0]


def test_one_feature_shift__tends_to_the_output_in_the_last_column() -> None:
    x, delta = np.array([1.0, 2.0, 0.5]), np.array([0.1, 0.2, -0.3])
    limit = x @ delta / x[-1]
    gap = [abs(one_feature_shift(x, delta, 2.0**-k)[-1] - limit) for k in (10, 20)]
    assert gap[1] < gap[0] * 2.0**-9


def test_babai__tells_plain_rounding_apart() -> None:
    """The equivalence that is proved in rationals is no property of every rounding."""
    w, below = [Fraction(2, 5), Fraction(2, 5)], Fraction(1)
    m, weight = [[Fraction(1), Fraction(0)], [below, Fraction(1)]], [Fraction(1), Fraction(2)]
    assert rational_plane(w, m)[0] == babai(w, m, weight) == [0, 1]
    assert [round(v) for v in w] == [0, 0]
