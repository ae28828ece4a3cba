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
    GptqRule,
    calibration_hessian,
    column_order,
    fit_groups,
    gptq,
    inverse_factor,
)
from unforgotten.theory.formats.group_grids import (
    GRID_RULES,
    GroupGrid,
    decode_group,
    encode_group,
    fit_autoawq,
    fit_compressed_tensors,
    fit_gptq,
)
from unforgotten.verification.chance import rng_for
from unforgotten.verification.oracles import U64, round_half_even

Matrix = list[list[Fraction]]
VARIANTS = [
    replace(GPTQ_RULES[name], bits=bits, group_size=size, block=4, symmetric=symmetric)
    for name in GPTQ_RULES
    for bits, size, symmetric in ((4, 4, True), (3, 2, False), (2, None, True), (8, 3, False))
]


def problem(seed: object, rows: int = 5, columns: int = 12) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weights, and inputs that share a direction."""
    rng = rng_for("gptq", seed)
    x = rng.normal(size=(3 * columns, columns)) + 2 * rng.normal(size=(3 * columns, 1))
    return rng.normal(0, 0.02, (rows, columns)), x


def exact_inverse(a: Matrix) -> Matrix:
    """Gauss–Jordan in rationals."""
    n = len(a)
    m = [[*row, *(Fraction(int(i == j)) for j in range(n))] for i, row in enumerate(a)]
    for i in range(n):
        pivot = m[i][i]
        m[i] = [v / pivot for v in m[i]]
        for k in range(n):
            if k != i:
                m[k] = [v - m[k][i] * p for v, p in zip(m[k], m[i], strict=True)]
    return [row[n:] for row in m]


def exact_codes(w: list[Fraction], h: Matrix, step: list[Fraction], zero: int, top: int) -> list[int]:
    """OBQ on the natural order, as the GPTQ paper derives it: no Cholesky factor, the inverse shrinks every step.

    A column is rounded; the others move to the minimum of the loss given that rounding, which is `-e / [H^-1]_ii` times
    the row of the inverse of what is left of H.
    """
    w, codes, n = list(w), [], len(w)
    for i in range(n):
        inverse = exact_inverse([row[i:] for row in h[i:]])
        code = min(max(round_half_even(w[i] / step[i]) + zero, 0), top)
        codes.append(code)
        error = (w[i] - (code - zero) * step[i]) / inverse[0][0]
        for j in range(i, n):
            w[j] -= error * inverse[0][j - i]
    return codes


@given(st.integers(0, 2**32), st.integers(1, 5))
def test_gptq__is_optimal_brain_quantization_in_rationals(seed: int, columns: int) -> None:
    """Fixed grid, integer Hessian: the codes are those of exact arithmetic, ties apart (there are none, as checked)."""
    rng = rng_for("rational", seed, columns)
    x = rng.integers(-3, 4, (columns + 2, columns))
    h = x.T @ x + np.eye(columns, dtype=int)
    w = rng.integers(-999, 1000, (2, columns)) / 1024 + 2.0**-13
    rule = GptqRule(group_size=None, damping=0.0)
    result = gptq(w, h.astype(float), rule)
    exact_h = [[Fraction(int(v)) for v in row] for row in h]
    ratio = result.compensated / result.scale
    for r in range(2):
        step = [Fraction(float(s)) for s in result.scale[r]]
        expected = exact_codes([Fraction(float(v)) for v in w[r]], exact_h, step, 8, 15)
        at_tie = np.abs(np.abs(ratio[r] - np.floor(ratio[r])) - 0.5) < 2.0**-30
        if not at_tie.any():
            assert list(result.codes[r]) == expected


class Plain(NamedTuple):
    """Values of the plain loop, and by how much the weight that was rounded to each was from a tie."""

    values: NDArray[Any]
    margin: NDArray[Any]


def plain_loop(w: NDArray[Any], h: NDArray[Any], rule: GptqRule) -> Plain:
    """GPTQ by least squares: every column in turn, later columns moved to the minimum of the loss, found by a solver.

    Shares with the reference the grids and the order of the columns, and nothing of the factorization. Both results
    are in the order in which columns are rounded.
    """
    dead = np.diag(h) == 0
    alive = np.where(dead, 0.0, w)
    h = h + np.diag(dead.astype(float))
    order = column_order(np.diag(h), rule)
    h = h[order][:, order]
    h = h + rule.damping * np.diag(h).mean() * np.eye(len(h))
    target = alive[:, order]
    values, margin = np.zeros_like(target), np.zeros_like(target)
    size = rule.group_size or w.shape[1]
    raw = w if rule.fit_dead or rule.group_size is None else alive
    for r in range(len(w)):
        best = target[r].copy()  # minimum of the loss given what is rounded so far
        fitted_to = best.copy()
        grid = GroupGrid(w[:1, :1], w[:1, :1])  # fitted at the first column
        for i in range(w.shape[1]):
            if i % rule.block == 0:
                fitted_to = best.copy()
            if rule.static or rule.group_size is None:
                first = order[i] // size * size
                grid = GRID_RULES[rule.grid].fit(raw[r : r + 1, first : first + size], rule.bits, rule.symmetric)
            elif i % size == 0:
                grid = GRID_RULES[rule.grid].fit(fitted_to[None, i : i + size], rule.bits, rule.symmetric)
            first = GRID_RULES[rule.grid].zero_first
            code = encode_group(best[None, i : i + 1], grid, rule.bits, zero_first=first)
            values[r, i] = decode_group(code, grid)[0, 0]
            steps = best[i] / grid.scale[0, 0]
            margin[r, i] = abs(abs(steps - np.rint(steps)) - 0.5) * grid.scale[0, 0]
            lost = target[r, : i + 1] - values[r, : i + 1]
            best[i + 1 :] = target[r, i + 1 :] + np.linalg.solve(h[i + 1 :, i + 1 :], h[i + 1 :, : i + 1] @ lost)
    return Plain(values, margin)


@pytest.mark.parametrize("rule", VARIANTS, ids=str)
def test_gptq__is_least_squares_column_by_column(rule: GptqRule) -> None:
    """Up to a row's first tie, which roundings decide: the symmetric grid puts its own largest weight on one."""
    w, x = problem(str(rule), rows=10)
    x[:, 5] = 0
    h = calibration_hessian(x)
    result = gptq(w, h, rule)
    condition = np.linalg.cond(h + np.eye(12) * rule.damping * np.diag(h).mean())
    slack = 12**2 * 4 * U64 * condition * np.abs(w).max()  # backward error of a solve, n^2 terms
    plain = plain_loop(w, h, rule)
    clear = np.logical_and.accumulate(plain.margin > slack, axis=1)
    assert clear[:, 0].any()
    assert np.abs(result.values[:, result.order] - plain.values)[clear].max() <= slack


@pytest.mark.parametrize("rule", VARIANTS, ids=str)
def test_gptq__loses_less_output_than_plain_rounding(rule: GptqRule) -> None:
    """Not a theorem, a property of inputs that share a direction: 40 rows together, static grids."""
    w, x = problem("plain", rows=40)
    own = replace(rule, static=True)
    grid = fit_groups(w, own)
    first = GRID_RULES[rule.grid].zero_first
    plain = decode_group(encode_group(w, grid, rule.bits, zero_first=first), grid)
    result = gptq(w, calibration_hessian(x), own)
    assert np.square((result.values - w) @ x.T).sum() < np.square((plain - w) @ x.T).sum()


@pytest.mark.parametrize("rule", VARIANTS, ids=str)
def test_gptq__is_plain_rounding_where_inputs_are_uncorrelated(rule: GptqRule) -> None:
    w, _ = problem("diagonal")
    result = gptq(w, np.diag(np.arange(1.0, 13.0)), replace(rule, static=True))
    grid = fit_groups(w, rule)
    first = GRID_RULES[rule.grid].zero_first
    assert np.array_equal(result.codes, encode_group(w, grid, rule.bits, zero_first=first))
    assert np.array_equal(result.compensated, w)


@pytest.mark.parametrize("rule", VARIANTS, ids=str)
@given(exponent=st.integers(-20, 20))
def test_gptq__ignores_the_scale_of_the_hessian(rule: GptqRule, exponent: int) -> None:
    """So 2/tokens, 2/sequences or 1 make no difference, where no column is dead. Powers of 4, to be exact."""
    w, x = problem("scale")
    h = calibration_hessian(x)
    assert np.array_equal(gptq(w, h, rule).values, gptq(w, h * 4.0**exponent, rule).values)


@pytest.mark.parametrize("rule", VARIANTS, ids=str)
def test_gptq__result_is_consistent(rule: GptqRule) -> None:
    w, x = problem("consistent")
    result = gptq(w.astype(np.float32), calibration_hessian(x), rule)
    grid = GroupGrid(result.scale, result.zero)
    first = GRID_RULES[rule.grid].zero_first
    codes = encode_group(result.compensated, grid, rule.bits, zero_first=first)
    assert np.array_equal(result.codes, codes)
    assert np.array_equal(result.values, decode_group(codes, grid))
    assert {a.dtype for a in (result.values, result.scale, result.compensated, result.factor)} == {np.dtype(np.float32)}
    assert sorted(result.order) == list(range(12))


def test_gptq__groups_see_the_corrections_of_earlier_blocks_only() -> None:
    w, x = problem("stale")
    h = calibration_hessian(x)
    rule = GptqRule(group_size=4, block=8)
    scale = {block: gptq(w, h, replace(rule, block=block)).scale for block in (4, 8, 12)}
    static = gptq(w, h, replace(rule, static=True)).scale
    assert np.array_equal(scale[12], static)  # one block: nothing is refreshed
    assert np.array_equal(scale[8][:, :8], static[:, :8])
    assert not np.array_equal(scale[8][:, 8:], static[:, 8:])
    assert not np.array_equal(scale[4][:, 4:8], scale[8][:, 4:8])


def test_gptq__sets_dead_columns_to_zero() -> None:
    w, x = problem("dead")
    x[:, [2, 7]] = 0
    for rule in VARIANTS:
        result = gptq(w, calibration_hessian(x), rule)
        assert result.dead.nonzero()[0].tolist() == [2, 7]
        assert (result.values[:, [2, 7]] == 0).all()


def test_gptq__counts_dead_weights_in_a_scale_where_the_library_does() -> None:
    w, x = problem("dead scale")
    x[:, 1] = 0
    w[:, 0], w[:, 1] = -np.abs(w[:, 0]), 5  # of both signs, or the range is half as wide
    h = calibration_hessian(x)
    late = gptq(w, h, GptqRule(group_size=4, static=True))
    early = gptq(w, h, GptqRule(group_size=4, static=True, fit_dead=True))
    row = gptq(w, h, GptqRule(group_size=None))
    assert (late.scale[:, 0] < 0.1).all()
    assert (early.scale[:, 0] == 10 / 15).all()
    assert (row.scale == 10 / 15).all()


@pytest.mark.parametrize(
    ("order", "group", "expected"),
    [
        ("natural", 2, [0, 1, 2, 3, 4]),
        ("activation", 2, [3, 1, 4, 0, 2]),
        ("group-aware", 2, [3, 2, 1, 0, 4]),
        ("group-aware", 8, [0, 1, 2, 3, 4]),
        ("group-aware", None, [3, 1, 4, 0, 2]),
    ],
)
def test_column_order__sorts_as_named(order: Any, group: int | None, expected: list[int]) -> None:
    diagonal = np.array([1.0, 5.0, 0.5, 9.0, 3.0])
    rule = GptqRule(order=order, group_size=group)
    assert column_order(diagonal, rule).tolist() == expected


@given(st.integers(1, 12), st.integers(0, 2**32))
def test_inverse_factor__factors_the_inverse(n: int, seed: int) -> None:
    a = rng_for("factor", n, seed).normal(size=(2 * n, n))
    h = a.T @ a + np.eye(n)
    u = inverse_factor(h)
    assert np.array_equal(u, np.triu(u))
    assert (np.diag(u) > 0).all()
    slack = 8 * n * n * U64 * np.linalg.cond(h)  # two factorizations, an inversion, a product
    assert np.abs(u.T @ u @ h - np.eye(n)).max() <= slack


def test_calibration_hessian__is_the_second_derivative_of_the_mean_loss() -> None:
    """E of |x e|^2, exactly quadratic: f(e) = e'He / 2."""
    w, x = problem("second derivative")
    e = w[0]
    loss = np.square(x @ e).mean()
    assert abs(e @ calibration_hessian(x) @ e / 2 - loss) <= 4 * len(x) * 12 * U64 * loss


def test_gptq__refuses_what_has_no_factor() -> None:
    w, x = problem("bad")
    with pytest.raises(ValueError, match="positive definite"):
        gptq(w, -calibration_hessian(x), GptqRule())
    with pytest.raises(ValueError, match="columns"):
        gptq(w, np.eye(3), GptqRule())


def test_fit_gptq__halves_the_range_of_a_symmetric_group_without_negatives() -> None:
    """The libraries' own rule. A layer of positive weights loses everything above 7/15 of its maximum."""
    w = np.array([[0.1, 0.5, 1.0]])
    grid = fit_gptq(w, 4, True)
    assert grid.scale[0, 0] == 1 / 15
    assert decode_group(encode_group(w, grid, 4), grid).max() == 7 / 15
    assert fit_gptq(w - 0.2, 4, True).scale[0, 0] == 2 * 0.8 / 15


@pytest.mark.parametrize("name", GRID_RULES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_grids__reach_their_extremes(name: str, symmetric: bool, bits: int) -> None:
    """Both signs in the group: the error is at most half a step, plus the half step by which a zero point is off."""
    w = rng_for("reach", name, bits).normal(size=(20, 16))
    grid = GRID_RULES[name].fit(w, bits, symmetric)
    codes = encode_group(w, grid, bits, zero_first=GRID_RULES[name].zero_first)
    assert codes.min() >= 0
    assert codes.max() <= 2**bits - 1
    worst = np.abs(decode_group(codes, grid) - w) / grid.scale
    assert worst.max() <= 1 + 2**bits * 4 * U64


def test_grids__of_zeros_have_a_scale() -> None:
    zeros = np.zeros((1, 4))
    assert [float(a[0, 0]) for a in fit_gptq(zeros, 4, True)] == [2 / 15, 8.0]
    assert [float(a[0, 0]) for a in fit_gptq(zeros, 4, False)] == [2 / 15, 8.0]
    assert fit_autoawq(zeros, 4, False).scale == 1e-5 / 15
    assert fit_autoawq(zeros, 4, True).scale == 1e-5 / 7
    for symmetric in (True, False):
        grid = fit_compressed_tensors(zeros, 4, symmetric)
        assert [float(a[0, 0]) for a in grid] == [np.finfo(float).eps, 8.0]


def test_fit_autoawq__clips_the_zero_point_of_a_group_without_zero() -> None:
    w = np.linspace(1.0, 1.5, 16)[None]
    grid = fit_autoawq(w, 4, False)
    assert grid.zero[0, 0] == 0
    assert decode_group(encode_group(w, grid, 4), grid).max() == 0.5


def test_encode_group__ties_depend_on_when_the_zero_point_is_added() -> None:
    grid, half = GroupGrid(np.ones((1, 1)), np.full((1, 1), 7.0)), np.array([[0.5, 1.5]])
    assert encode_group(half, grid, 4).tolist() == [[7, 9]]
    assert encode_group(half, grid, 4, zero_first=True).tolist() == [[8, 8]]


@pytest.mark.parametrize("name", ["gptq", "compressed-tensors"])
def test_encode_group__leaves_the_largest_weight_to_the_last_bit_of_the_scale(name: str) -> None:
    """A symmetric scale of max|w| / 7.5 puts -max|w| on the threshold between -8 and -7.

    In rationals that is a tie, always; in floats the roundings of scale and ratio decide, half a step apart.
    """
    w = -np.abs(rng_for("largest", name).normal(size=(1000, 1)))
    grid = GRID_RULES[name].fit(w, 4, True)
    codes = encode_group(w, grid, 4, zero_first=GRID_RULES[name].zero_first)
    assert set(codes.ravel()) == {0, 1}
