from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from unforgotten.theory.formats.awq import (
    AWQ_RULES,
    AwqRule,
    Candidate,
    candidate_scales,
    input_means,
    round_groups,
    search_clip,
    search_scales,
    weight_means,
)
from unforgotten.verification.chance import rng_for
from unforgotten.verification.oracles import U64, round_half_even

RULES = {
    f"{name}-{bits}-{symmetric}": replace(rule, bits=bits, group_size=8, symmetric=symmetric, clip_tokens=20)
    for name, rule in AWQ_RULES.items()
    for bits in (3, 4)
    for symmetric in (False, True)
}


CENTRED, RESCALED, QUOTIENTS = 6 + 1, 17 + 1, 3 + 1  # first-order roundings, and one for the rest
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def problem(seed: object, rows: int = 16, columns: int = 24) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weights, and inputs of which two columns are thirty times as large."""
    return problem_of(rng_for("awq", seed), rows, columns)


def problem_of(rng: np.random.Generator, rows: int = 16, columns: int = 24) -> tuple[NDArray[Any], NDArray[Any]]:
    x = rng.normal(size=(40, columns))
    x[:, [3, 17]] *= 30
    return rng.normal(0, 0.02, (rows, columns)), x


def f64(x: Fraction) -> Fraction:
    """One rounding to float64: Python's conversion of a rational is correctly rounded."""
    return Fraction(float(x))


def exact_round(w: list[Fraction], rule: AwqRule) -> list[Fraction]:
    """One group of `round_groups`, one rounding an operation."""
    top, half = 2**rule.bits - 1, 2 ** (rule.bits - 1)
    awq = rule.grid == "autoawq"
    tiny = Fraction(1e-5) if awq else Fraction(0)
    zero = half
    if rule.symmetric:
        divisor = Fraction(half - 1) if awq else Fraction(top, 2)
        scale = f64(max(tiny, *(abs(v) for v in w)) / divisor)
    else:
        low, high = min(w), max(w)
        if not awq:
            low, high = min(low, Fraction(0)), max(high, Fraction(0))
        scale = f64(max(f64(high - low), tiny) / top)
        ratio = f64(low / scale)
        zero = -round_half_even(ratio) if awq else round_half_even(f64(-half - ratio)) + half
        zero = min(max(zero, 0), top)
    codes = [round_half_even(f64(v / scale)) + zero if awq else round_half_even(f64(f64(v / scale) + zero)) for v in w]
    return [f64(scale * (min(max(code, 0), top) - zero)) for code in codes]


@every_rule
@given(seed=st.integers(0, 2**32))
def test_round_groups__is_exact_float64(rule: AwqRule, seed: int) -> None:
    w = rng_for("round", seed).normal(size=(2, 16))
    for row, values in zip(w, round_groups(w, rule), strict=True):
        for i in (0, 8):
            exact = exact_round([Fraction(float(v)) for v in row[i : i + 8]], rule)
            assert [Fraction(float(v)) for v in values[i : i + 8]] == exact


@every_rule
def test_search_scales__has_the_loss_it_reports_and_it_is_least(rule: AwqRule) -> None:
    w, x = problem("loss")
    found = search_scales(w, x, rule)
    best = found.losses.min()
    assert rule.candidates[int(found.losses.argmin())] == found.candidate
    outputs = x @ found.values.T, x @ w.T
    loss = np.square(outputs[0] - outputs[1]).mean()
    # an output of n products is off by (n + 1) u of their magnitudes, however it is summed; here two, there one of q - w
    size = np.abs(x) @ (np.abs(found.values) + np.abs(w)).T
    off = 2 * (w.shape[1] + 1) * U64 * size
    slack = (2 * np.abs(outputs[0] - outputs[1]) * off + off**2).mean() + 2 * w.size * U64 * loss
    assert abs(loss - best) <= slack
    assert np.array_equal(found.values, round_groups(w * found.scales, rule) / found.scales)


@every_rule
def test_search_scales__gives_columns_with_large_inputs_finer_steps(rule: AwqRule) -> None:
    """And lowers the output error of plain rounding, which is the identity candidate of llmcompressor.

    An example and no law, so its sample has a seed of its own: under others llmcompressor's symmetric search takes the
    identity, or scales that follow the weights, 1 time in 5.
    """
    w, x = problem_of(np.random.default_rng(1))
    found = search_scales(w, x, rule)
    large = found.scales[[3, 17]].min()
    assert large > np.delete(found.scales, [3, 17]).max()
    plain = np.square(x @ (round_groups(w, rule) - w).T).mean()
    assert found.losses.min() < plain


def test_search_scales__of_llmcompressor_is_never_worse_than_plain_rounding() -> None:
    for name, rule in RULES.items():
        if name.startswith("llm"):
            w, x = problem(name)
            found = search_scales(w, x, rule)
            plain = round_groups(w, rule)
            assert found.losses[0] == np.square(x @ (plain - w).T).mean()
            assert found.losses.min() <= found.losses[0]


def test_search_scales__of_autoawq_can_be_worse_than_plain_rounding() -> None:
    """Its 20 candidates hold no identity: ratio 0 still divides by the mean weights. Weights of one column are small."""
    rule = replace(AWQ_RULES["autoawq"], group_size=4, bits=4)
    w = np.array([[-7.0, 8.0, 1.0, 3.0], [8.0, -7.0, 2.0, 5.0]])
    x = np.eye(4)
    plain = round_groups(w, rule)
    assert np.array_equal(plain, w)
    assert search_scales(w, x, rule).losses.min() > 0


def test_search_scales__first_of_equals_wins() -> None:
    rule = replace(AWQ_RULES["llmcompressor"], group_size=4)
    found = search_scales(np.zeros((2, 4)), np.ones((3, 4)), rule)
    assert found.candidate == Candidate(0.0, False)
    assert (found.scales == 1).all()


@given(st.integers(0, 2**32), st.floats(0, 1), st.booleans(), st.integers(-8, 8))
def test_candidate_scales__are_centred_and_ignore_the_units_of_inputs(
    seed: int, ratio: float, duo: bool, exponent: int
) -> None:
    """Max s times min s is 1, and rescaled inputs give the same s, while no scale meets its floor.

    Roundings: n = sqrt(max min) has 1.5, so (max / n)(min / n) has 2 * 1.5 + 3. A rescaled s has those of its power (an
    ulp, 2), a quotient, n (half of twice 3 and a product, and a root: 4.5) and a quotient: 8.5, twice; w's part is the same.
    """
    rng = rng_for("scales", seed)
    x_mean, w_mean = rng.uniform(0.5, 50, 12), rng.uniform(0.05, 0.9, 12)
    s = candidate_scales(x_mean, w_mean, Candidate(ratio, duo))
    again = candidate_scales(x_mean * 2.0**exponent, w_mean, Candidate(ratio, duo))
    assert abs(s.max() * s.min() - 1) <= CENTRED * U64
    assert (np.abs(again - s) <= RESCALED * U64 * s).all()


@given(st.integers(0, 2**32), st.floats(0, 1))
def test_candidate_scales__are_the_formula(seed: int, ratio: float) -> None:
    """The same operations in the same order, while the floors 1e-4 do not bind."""
    rng = rng_for("formula", seed)
    x, w = rng.uniform(0.5, 50, 12), rng.uniform(0.05, 0.9, 12)
    plain, duo = x**ratio, x**ratio / (w ** (1 - ratio) + 1e-4)
    for s, expected in ((False, plain), (True, duo)):
        expected = expected / np.sqrt(expected.max() * expected.min())
        assert np.array_equal(candidate_scales(x, w, Candidate(ratio, s)), expected)


def test_candidate_scales__have_a_floor_for_columns_without_inputs() -> None:
    s = candidate_scales(np.array([0.0, 1.0]), np.array([0.5, 0.5]), Candidate(0.5, False))
    assert abs(s[0] / s[1] - 1e-4) <= QUOTIENTS * U64 * 1e-4


def test_means__are_what_they_say() -> None:
    x, w = np.array([[1.0, -3.0], [-1.0, 0.0]]), np.array([[1.0, -4.0], [2.0, 2.0]])
    assert input_means(x).tolist() == [1.0, 1.5]
    expected = [(1 / (4 + 1e-6) + 2 / (2 + 1e-6)) / 2, (4 / (4 + 1e-6) + 2 / (2 + 1e-6)) / 2]
    assert weight_means(w, 2).tolist() == expected


def test_search_clip__has_the_least_error_of_its_grid() -> None:
    rule = RULES["autoawq-3-False"]
    w, x = problem("clip")
    w[:, ::8] *= 3
    bound = search_clip(w, x, rule)
    shown = x[::2]  # 40 inputs, about 20 wanted
    for r in range(len(w)):
        for g in range(0, 24, 8):
            group, part = w[r, g : g + 8], shown[:, g : g + 8]
            absmax = np.abs(group).max()
            trials = [absmax * (1 - i / 20) for i in range(10)]
            clipped = [np.clip(group, -m, m)[None] for m in trials]
            errors = [np.square(part @ (round_groups(c, rule)[0] - group)).mean() for c in clipped]
            slack = 64 * U64 * float(np.square(part @ np.abs(group)).mean())
            chosen = trials.index(bound[r, g])
            assert errors[chosen] <= min(errors) + slack
    assert (bound < np.abs(w).reshape(16, 3, 8).max(axis=2).repeat(8, axis=1)).any()


def test_search_clip__of_one_step_clips_nothing() -> None:
    w, x = problem("no clip")
    rule = RULES["llmcompressor-4-False"]
    assert (search_clip(w, x, rule) >= np.abs(w)).all()


@every_rule
def test_awq__refuses_what_it_cannot_do(rule: AwqRule) -> None:
    w, x = problem("bad")
    with pytest.raises(ValueError, match="group_size must divide"):
        round_groups(w[:, :20], rule)
    with pytest.raises(ValueError, match="finite"):
        search_scales(w, np.full_like(x, 1e300), rule)


@every_rule
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_awq__computes_in_the_dtype_of_the_weights(rule: AwqRule, dtype: str) -> None:
    w, x = (a.astype(dtype) for a in problem("dtype"))
    found = search_scales(w, x, rule)
    assert {found.scales.dtype, found.values.dtype, search_clip(w, x, rule).dtype} == {np.dtype(dtype)}
