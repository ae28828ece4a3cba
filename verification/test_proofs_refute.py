"""Proofs can fail: a wrong version of every statement is refuted, and where theory.md was loose, here is why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import z3

from unforgotten.theory.claims import CLAIMS, Claim, Proof
from unforgotten.theory.dead_zone import frozen_exponent
from unforgotten.theory.decomposition import LostEffect, lost_effect
from unforgotten.theory.formats import Format, format_named
from unforgotten.theory.proofs import (
    certificates,
    decomposition,
    drift,
    geometry,
    run,
    smt,
    storage,
)
from unforgotten.theory.proofs.smt import Statement, counterexample, prove
from unforgotten.theory.quantize import encode, fit_grid, quantize, round_trip

HALF = Fraction(1, 2)
WRONG: dict[str, Statement] = {
    "a threshold at a third of the gap": geometry.nearest_statement(3, 1, place=Fraction(1, 3)),
    "a tie that goes up": geometry.counted_statement(3, 1, closed_above=False),
    "a tie by the parity of the code, not of the ratio": geometry.integer_statement(ties_by_code=True),
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
    "uniqueness without symmetry": decomposition.unique_statement(symmetric=False),
}  # fmt: skip


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
    """Scale and zero point can both stay while the ends of the block move: here to the left by a tenth of a step."""
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
    assert (grid.zero, grid_new.zero) == (3, 4)
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
    fmt = replace(format_named("int4-g1-paper"), divisor=7.5)
    assert drift.value_factor(fmt) == Fraction(16, 15)
    w, w_new = np.array([[-7.5]], np.float32), np.array([[-15.0]], np.float32)
    before, after = fit_grid(w, fmt), fit_grid(w_new, fmt)
    assert encode(w, before, fmt) == encode(w_new, after, fmt) == 0  # level -8
    surviving = round_trip(w_new, fmt) - round_trip(w, fmt)
    assert Fraction(float(surviving[0, 0])) == -Fraction(16, 15) * Fraction(15, 2)


def test_value_factors__fails_for_such_a_format(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_one_more() -> tuple[Format, ...]:
        return (replace(format_named("int4-g4-paper"), divisor=7.5),)

    monkeypatch.setattr(drift, "every_format", with_one_more)
    with pytest.raises(AssertionError, match="16/15"):
        drift.value_factors()


def test_absmax_scale_drift__fails_for_a_scale_that_is_a_power_of_two() -> None:
    """MXFP4's s = 2^(floor(log2 absmax) - 2) doubles when the absmax passes a power of two, however small delta is.

    A scale that is rounded adds the two roundings to the drift (T3, applied to the scale); here they are s itself.
    """

    def scale(absmax: float) -> float:
        return 2.0 ** (np.floor(np.log2(absmax)) - 2)

    delta = 2.0**-20
    assert scale(1.0) - scale(1.0 - delta) == 0.125
    assert 0.125 > 1000 * delta / 4


def test_stored_thresholds__fail_for_a_threshold_that_is_no_midpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("off", [-1, 1])
def test_check_dead_zone__refutes_another_edge(dtype: str, off: int) -> None:
    with pytest.raises(AssertionError, match=r"moves|frozen|exception"):
        storage.check_dead_zone(dtype, lambda eta, name: frozen_exponent(eta, name) + off)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_check_half_ulp__refutes_one_ulp_for_both_sides(dtype: str) -> None:
    """T4's "|eta| < ulp(w)/2 returns w" is false toward 0 from a power of two, where the gap is half an ulp."""
    with pytest.raises(AssertionError, match="eta="):
        storage.check_half_ulp(dtype, one_ulp_for_both_sides=True)


def test_check_half_ulp__fails_as_the_library_shows() -> None:
    w, eta, ulp = np.float16(1), np.float16(-0.375 * 2**-10), 2.0**-10
    assert abs(float(eta)) < ulp / 2
    assert np.float16(w + eta) != w


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_check_float32_sum__refutes_a_smaller_margin(dtype: str) -> None:
    with pytest.raises(AssertionError, match="eta="):
        storage.check_float32_sum(dtype, units=0.5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_rounded_sum__is_the_cast_of_the_library(dtype: str) -> None:
    """Every value plus every update whose sum float32 holds exactly: there the library rounds once."""
    s = storage.storage(dtype)
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    compared = 0
    for k in range(s.smallest_step - 1, 5):
        for eta in (2.0**k, 0.75 * 2.0**k, -1.25 * 2.0**k):
            total = s.finite + eta
            own = storage.rounded_sum(s.finite, eta, s.significant_bits, s.smallest_step)
            keep = (total.astype(np.float32) == total) & (np.abs(own) <= s.largest)
            cast = total[keep].astype(np.float32).astype(kind).astype(np.float64)
            assert np.array_equal(cast, own[keep])
            compared += int(keep.sum())
    assert compared > s.finite.size


def test_storage__has_the_values_that_the_formats_are_known_for() -> None:
    e4m3, e5m2 = storage.storage("float8_e4m3fn"), storage.storage("float8_e5m2")
    assert (e4m3.largest, e4m3.smallest_step, e4m3.finite.size) == (448.0, -9, 254)
    assert (e5m2.largest, e5m2.smallest_step, e5m2.finite.size) == (57344.0, -16, 248)
    assert storage.storage("bfloat16").finite.size == 2**16 - 2 * 128
    assert storage.storage("float16").finite.size == 2**16 - 2 * 1024


def test_float8__overflows_to_nan_or_inf() -> None:
    """What "beyond the largest number" means without saturation: e4m3fn has no inf. Ties stay at the even 448."""
    beyond = np.array([464.0, 465.0, 1e6], np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        e4m3 = beyond.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        e5m2 = np.array([61440.0], np.float32).astype(ml_dtypes.float8_e5m2).astype(np.float32)
    assert e4m3[0] == 448
    assert np.isnan(e4m3[1:]).all()
    assert np.isinf(e5m2).all()


def test_check_chernoff__fails_with_another_number_of_trials() -> None:
    certificates.check_chernoff(4, 3, Fraction(1, 3))
    with pytest.raises(AssertionError, match="n=4, k=3"):
        certificates.check_chernoff(4, 3, Fraction(1, 3), trials=5)


def test_check_chernoff__needs_a_count_above_the_mean() -> None:
    with pytest.raises(AssertionError, match="n=4, k=1"):
        certificates.check_chernoff(4, 1, Fraction(1, 2))


HOLDS = run.Outcome(Proof("T1", "smt", "all reals", "m.f", "x = x"), "", 0.25)
FAILS = run.Outcome(Proof("T1", "exact", "1 … 4", "m.g", "x < x"), "refuted by {'x': '0'}", 0.0)


def test_entry__says_what_is_shown_where_and_whether() -> None:
    assert run.entry(HOLDS).splitlines() == [
        "T1   smt          0.2 s  holds: x = x",
        "                        for all reals",
    ]
    assert "FAILS: refuted by {'x': '0'}" in run.entry(FAILS)


def test_summary__has_a_row_a_statement_and_what_is_only_tested() -> None:
    bare = [Claim("T16", "exact", "a definition", "m.h", "rho = 0 as unlearned")]
    assert run.summary([HOLDS, FAILS], bare).splitlines() == [
        "T1   1 FAIL   1 exact, 1 smt",
        "T16  tested   exact: rho = 0 as unlearned",
    ]
    assert run.summary([HOLDS], []) == "T1   holds    1 smt"


@pytest.mark.parametrize(("outcomes", "code"), [([HOLDS], 0), ([HOLDS, FAILS], 1)])
def test_print_proofs__exits_1_where_one_fails(
    outcomes: list[run.Outcome],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run, "run_proofs", lambda _: iter(outcomes))
    assert run.print_proofs() == code
    assert capsys.readouterr().out.count("FAIL") == 2 * code


def test_only_tested__lists_claims_without_a_proof_alone() -> None:
    proved = {p.claim for p in run.load_proofs().values()}
    bare = run.only_tested()
    assert {c.id for c in bare} | proved >= {c.id for c in CLAIMS.values()}
    assert not {c.id for c in bare} & proved


def test_run_proofs__goes_by_statement() -> None:
    some = {name: p for name, p in run.load_proofs().items() if p.claim in ("T3", "T14")}
    assert len(some) == 4
    outcomes = list(run.run_proofs(some.values()))
    assert [o.proof.claim for o in outcomes] == ["T3", "T14", "T14", "T14"]
    assert not any(o.error for o in outcomes)
