"""Proofs can fail: a wrong version of every statement is refuted, and where an early draft was loose, here is why."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import z3

from unforgotten.theory.formats.names import PATTERNS, Format, format_named
from unforgotten.theory.formats.reference import encode, fit_grid, quantize, round_trip
from unforgotten.theory.formats.rounding import ROUNDINGS
from unforgotten.theory.models.decomposition import LostEffect, lost_effect
from unforgotten.theory.proofs import (
    certainty,
    certificates,
    decomposition,
    displacement,
    drift,
    geometry,
    minimax,
    second_moment,
    smt,
)
from unforgotten.theory.proofs.smt import Statement, counterexample, prove

HALF = Fraction(1, 2)
WRONG: dict[str, Statement] = {
    "a threshold at a third of the gap": geometry.nearest_statement(3, 1, place=Fraction(1, 3)),
    "a tie that goes up": geometry.counted_statement(3, 1, closed_above=False),
    "a tie by the parity of the code, not of the ratio": geometry.integer_statement(
        "half-even", ends="half-even, zero first"
    ),
    "half-up with the ends of half-away": geometry.integer_statement("half-up", ends="half-away"),
    "half-away with the ends of half-up": geometry.integer_statement("half-away", ends="half-up"),
    "a tie to the odd label": geometry.labelled_statement(3, 1, tie_to_even=False),
    "a range of the AUC at half the change": certificates.auc_range_statement(1, 1, share=HALF),
    "cells alone, on an adaptive grid": geometry.block_statement(2, same_statistic=False),
    "displacement without the second error": geometry.displacement_statement(1, both_errors=False),
    "half the drift of an absmax": drift.absmax_statement(1, factor=HALF),
    "the drift of a range without the factor 2": drift.range_statement(2, factor=Fraction(1)),
    "no flip with <= in place of <": drift.no_flip_statement(strict=False),
    "no flip without the drift of the scale": drift.no_flip_statement(with_drift=False),
    "half the displacement at an unchanged code": drift.value_statement(factor=HALF),
    "a greedy gap of one change": certificates.greedy_statement(2, factor=1),
    "a greedy gap of exactly two changes": certificates.greedy_statement(2, strict=False),
    "pairs within one change": certificates.auc_statement(1, 1, factor=1),
    "pairs strictly within two changes": certificates.auc_statement(1, 1, ends_included=False),
    "a quarter of the l1 distance": certificates.total_variation_statement(2, factor=Fraction(1, 4)),
    "twice TV^2": certificates.affinity_statement(2, factor=2),
    "merged affinity with a factor": certificates.merging_statement(factor=2),
    "a moment at a base below 1": certificates.markov_statement(2, 1, least_base=0),
    "a mean that is too small": certificates.mean_statement(2, factor=HALF),
    "the sign where the remainder is as large": certainty.sign_statement(strict=False),
    "twice the spread of an unbiased law": minimax.variance_statement((0, 1), 0, factor=2),
    "Jensen with half the square": second_moment.jensen_statement(2, factor=HALF),
    "the first weights filled, not the largest": second_moment.filling_statement(2, 0, sorted_weights=False),
    "uniqueness without symmetry": decomposition.unique_statement(symmetric=False),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_prove__refutes_a_wrong_version(wrong: Statement) -> None:
    assert counterexample(wrong)
    with pytest.raises(AssertionError, match="refuted by"):
        prove(wrong)


def gating_first(**f: float) -> LostEffect:
    """One order only: no remainder, and not symmetric."""
    total, gating = lost_effect(**f).total, f["w_new"] - f["w_plus_d"]
    return LostEffect(total, gating, total - gating)


def unhalved(**f: float) -> LostEffect:
    """The sum of both orders in place of their mean."""
    s = lost_effect(**f)
    return LostEffect(s.total, 2 * s.gating, 2 * s.base_shift)


def evenly(**f: float) -> LostEffect:
    """Half the total each: no remainder, symmetric, and blind to a replacement that does nothing."""
    s = lost_effect(**f)
    return LostEffect(s.total, s.total / 2, s.total / 2)


@pytest.mark.parametrize(
    ("statement", "split"),
    [
        (decomposition.no_remainder_statement, unhalved),
        (decomposition.two_orders_statement, gating_first),
        (decomposition.symmetric_statement, gating_first),
        (decomposition.null_statement, evenly),
    ],
)
def test_prove__refutes_another_split(
    statement: Callable[[decomposition.Split], Statement], split: decomposition.Split
) -> None:
    assert counterexample(statement(lost_effect)) is None
    assert counterexample(statement(split))


def test_prove__refuses_a_void_statement() -> None:
    x = z3.Real("x")
    with pytest.raises(AssertionError, match="exclude one another"):
        prove(Statement((x > 0, x < 0), x > 1))


def test_prove__says_so_when_z3_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smt, "EFFORT", 10)
    with pytest.raises(AssertionError, match="gives up"):
        prove(geometry.displacement_statement(4))


def test_block_preimage__needs_equal_parameters_and_not_equal_ends_for_a_range() -> None:
    """Scale and zero point can both stay while both ends of the block move: here to the left by an eighth of a step."""
    fmt = format_named("int4-g4-asym")
    w, w_new = (np.array([[low, 1.0, 2.0, low + 15.0]], np.float32) for low in (-3.25, -3.375))
    before, after = fit_grid(w, fmt), fit_grid(w_new, fmt)
    assert before.scale == after.scale
    assert before.zero == after.zero
    assert w.min() != w_new.min()


def test_value_drift__fails_where_a_zero_point_moves_and_no_code_does() -> None:
    """T2's "no code changes, so |D_i| <= max|delta|" is false with a zero point: D is 64 times delta here.

    -low/s passes a half, so the zero point goes from 3 to 4; both codes stay at the ends.
    """
    fmt = format_named("int4-g2-asym")
    w = np.array([-3.5 + 2**-7, 11.5 + 2**-7], np.float32)
    w_new = np.array([-3.5 - 2**-7, 11.5 - 2**-7], np.float32)
    (codes, grid), (codes_new, grid_new) = quantize(w, fmt), quantize(w_new, fmt)
    assert np.array_equal(codes, codes_new)
    assert grid.scale == grid_new.scale == 1
    assert [g.zero.item() for g in (grid, grid_new)] == [3, 4]
    surviving = round_trip(w_new, fmt) - round_trip(w, fmt)
    assert np.array_equal(surviving, [-1, -1])
    assert np.abs(w_new - w).max() == 2**-6


def test_value_drift__attains_the_factor_two_of_a_range() -> None:
    """Both ends move out by a sixteenth; the top code, and so the zero point, stays: D = 2 delta."""
    fmt = format_named("int4-g2-asym")
    w, delta = np.array([0.0, 15.0], np.float32), np.array([-0.0625, 0.0625], np.float32)
    (codes, grid), (codes_new, grid_new) = quantize(w, fmt), quantize(w + delta, fmt)
    assert np.array_equal(codes, codes_new)
    assert grid.zero == grid_new.zero
    surviving = round_trip(w + delta, fmt) - round_trip(w, fmt)
    assert surviving[1] == pytest.approx(2 * delta[1], rel=15 * 2.0**-22)  # ulp of s' against D


def test_value_factor__is_above_one_where_the_levels_pass_the_divisor() -> None:
    """Compressed-tensors' symmetric int4: levels -8 … 7 and scale = absmax / 7.5. The factor 16/15 is attained."""
    fmt = format_named("int4-g1-ct")
    assert drift.value_factor(fmt) == Fraction(16, 15)
    w, w_new = np.array([[-7.5]], np.float32), np.array([[-15.0]], np.float32)
    before, after = fit_grid(w, fmt), fit_grid(w_new, fmt)
    assert encode(w, before, fmt) == encode(w_new, after, fmt) == 0  # level -8
    surviving = round_trip(w_new, fmt) - round_trip(w, fmt)
    assert Fraction(float(surviving[0, 0])) == -Fraction(16, 15) * Fraction(15, 2)


@pytest.mark.parametrize(("change", "factor"), [({"divisor": 7.0}, "8/7"), ({"unit": 2.0}, "2")])
def test_value_factors__fails_for_a_format_that_breaks_it(
    change: dict[str, Any], factor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Levels that pass a whole divisor; a unit that the code's own bound would have to know of."""

    def broken() -> tuple[Format, ...]:
        return (replace(format_named("int4-g4-paper"), **change),)

    monkeypatch.setattr(drift, "every_format", broken)
    with pytest.raises(AssertionError, match=f"int4-g4-paper: {factor}$"):
        drift.value_factors()


def test_every_format__has_a_member_of_every_family() -> None:
    """Of those that round to nearest: a dithered format has no cells, and is what `test_dither.py` is about."""
    nearest = [p for p in PATTERNS if "dither" not in p]
    assert len(nearest) == len(PATTERNS) - 1
    assert all(any(re.fullmatch(p, f) for f in geometry.FORMATS) for p in nearest)
    assert {f.rounding for f in geometry.every_format()} == set(ROUNDINGS) - {"dither"}


def test_absmax_scale_drift__fails_for_a_scale_that_is_a_power_of_two() -> None:
    """MXFP4's s = 2^(floor(log2 absmax) - 2) doubles when the absmax passes a power of two, however small delta is.

    A scale that is rounded adds the two roundings to the drift (T3, applied to the scale); here they are s itself.
    """

    def scale(absmax: float) -> float:
        return 2.0 ** (np.floor(np.log2(absmax)) - 2)

    delta = 2.0**-20
    assert scale(1.0) - scale(1.0 - delta) == 0.125
    assert 0.125 > 1000 * delta / 4


def test_absmax_scale_drift__fails_for_a_signed_absmax() -> None:
    """GGUF's Q4_0 divides the entry of largest magnitude, with its sign: a small change of two rivals turns the scale."""
    fmt = format_named("q4_0")
    w, w_new = (np.array([[1.0, second] + [0.0] * 30], np.float32) for second in (-0.96875, -1.03125))
    before, after = fit_grid(w, fmt), fit_grid(w_new, fmt)
    assert [g.scale.item() for g in (before, after)] == [-0.125, 0.12890625]
    assert abs(after.scale - before.scale).item() > 30 * 0.0625 / 8


def test_stored_thresholds__fail_for_a_threshold_that_is_no_midpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(fmt: Format) -> list[tuple[Fraction, Fraction, Fraction]]:
        return [(Fraction(1), Fraction(1) + 2 * geometry.U32, Fraction(1))]

    monkeypatch.setattr(geometry, "stored_threshold_gaps", shifted)
    with pytest.raises(AssertionError, match="int2-g4"):
        geometry.stored_thresholds_are_midpoints_rounded()


def test_stored_thresholds__are_no_exact_midpoints_in_nf4() -> None:
    """So "the nearest level" is not what the kernel computes, by one rounding of a threshold."""
    gaps = [geometry.stored_threshold_gaps(format_named(f)) for f in ("nf4-b4", "fp4-b4")]
    assert all(any(t != midpoint for t, midpoint, _ in g) for g in gaps)
    exact = geometry.stored_threshold_gaps(format_named("int4-g4"))
    assert all(t == midpoint for t, midpoint, _ in exact)


def test_check_chernoff__fails_with_another_number_of_trials() -> None:
    certificates.check_chernoff(4, 3, Fraction(1, 3))
    with pytest.raises(AssertionError, match="n=4, k=3"):
        certificates.check_chernoff(4, 3, Fraction(1, 3), trials=5)


def test_check_chernoff__needs_a_count_above_the_mean() -> None:
    with pytest.raises(AssertionError, match="n=4, k=1"):
        certificates.check_chernoff(4, 1, Fraction(1, 2))


def test_no_step_exceeds__refutes_the_folk_bound() -> None:
    """The folk bound, a step of at most lr: c_t = 1 holds at the first step alone."""
    assert counterexample(displacement.step_statement(1, Fraction(1))) is None
    for t in displacement.STEPS[1:]:
        assert counterexample(displacement.step_statement(t, Fraction(1)))
        assert counterexample(displacement.step_statement(t, displacement.ratio_sq(t - 1)))


def test_extremal_gradients__fail_with_another_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(displacement, "ratio_sq", lambda t: Fraction(1))
    with pytest.raises(AssertionError, match="t=2: not attained"):
        displacement.extremal_gradients_attain_the_ratio()
