"""The exact ends of domains, and ties: where `<` in place of `<=`, or a tie rounded up, shows, and nowhere else."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from unforgotten.theory.calculators.bound import LR_RANGE, Question, bound
from unforgotten.theory.formats import hqq
from unforgotten.theory.formats.awq import AWQ_RULES, search_clip
from unforgotten.theory.formats.group_grids import fit_autoawq, fit_compressed_tensors, fit_gptq
from unforgotten.theory.formats.kquants import SMALLEST, q6_k, search_one_by_one, search_symmetric
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.rounding import half_away
from unforgotten.theory.geometry.dead_zone import BINADES, MIN_WEIGHTS, BinadeCounts, find_dead_zone
from unforgotten.theory.geometry.drift import keeps_code
from unforgotten.theory.geometry.motion import (
    StepLaw,
    expected_displacement,
    free_radius,
    movable_edge,
    shells,
    step_law,
)
from unforgotten.theory.geometry.motion_fit import observed_moves, step_ratio
from unforgotten.theory.geometry.preimages import LARGEST, block_box, same_scale
from unforgotten.theory.laws.regimes import on_grid_survivor
from unforgotten.theory.laws.wash import permutation_wash_test
from unforgotten.theory.models.lattice import is_swallowed

TINY = np.float32(2.0**-149)


def group(*weights: float) -> NDArray[Any]:
    return np.array([weights], np.float32)


def test_fit_gptq__sends_a_zero_point_on_a_tie_to_even() -> None:
    """Range [-1, 5], 2 bits: step 2, and 0 lies half a step above the lowest level."""
    assert fit_gptq(group(-1, 5), 2, False).zero.tolist() == [[0]]
    assert fit_gptq(group(-3, 3), 2, False).zero.tolist() == [[2]]


def test_fit_compressed_tensors__sends_a_zero_point_on_a_tie_to_even() -> None:
    assert fit_compressed_tensors(group(-1, 5), 2, False).zero.tolist() == [[0]]
    assert fit_compressed_tensors(group(-3, 3), 2, False).zero.tolist() == [[2]]


def test_fit_autoawq__sends_a_zero_point_on_a_tie_to_even() -> None:
    assert fit_autoawq(group(-3, 3), 2, False).zero.tolist() == [[2]]
    assert fit_autoawq(group(-5, 1), 2, False).zero.tolist() == [[2]]


def test_fit_compressed_tensors__keeps_the_zero_point_a_code_where_the_scale_is_subnormal() -> None:
    """22 / 15 of the smallest number is rounded to 1 of it, so 0 lies 22 steps above the lowest of 16 levels."""
    grid = fit_compressed_tensors(np.array([[-22, 0]], np.float32) * TINY, 4, False)
    assert grid.scale == TINY
    assert grid.zero == 15


def test_proximal_affine__sends_a_weight_on_a_tie_to_the_even_code() -> None:
    """Of 0, 1/2, 3 in steps of 1 the tie goes to 0, errs by +1/2, and draws the zero point below 0."""
    affine = hqq.proximal_affine(group(0, 0.5, 3), format_named("hqq2-g3-opt"))
    assert affine.inverse == 1
    assert affine.zero < 0


def test_proximal_affine__stops_where_the_error_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two weights err upward and two downward, so a small shift of the zero point changes no mean error."""
    w, fmt = group(0, 0.5, 2, 1), format_named("hqq2-g4-opt")
    zeros = {}
    for steps in (0, 1, 2, 20):
        monkeypatch.setattr(hqq, "STEPS", steps)
        zeros[steps] = float(hqq.proximal_affine(w, fmt).zero[0, 0])
    errors = [np.abs((np.rint(w * 1.5 + zeros[n]) - zeros[n]) / 1.5 - w).mean() for n in (0, 1)]
    assert errors[0] == pytest.approx(errors[1], rel=2.0**-22)  # float32 values
    assert zeros[1] != zeros[2] == zeros[20]


@given(st.floats(-100, 100), st.sampled_from([0.5, 1.0, 3.0]))
def test_on_grid_survivor__is_odd(delta: float, step: float) -> None:
    """Ties go to even on both sides of 0; away from ties symmetry is that of rounding."""
    for d in (delta, step / 2, 1.5 * step, 2.5 * step):
        assert on_grid_survivor(-d, step) == -on_grid_survivor(d, step)


@pytest.mark.parametrize("name", ["int4-row-asym", "int4-row-ct-asym", "int4-row-ao-asym", "hqq4-g64"])
def test_format__of_a_range_divides_it_by_its_number_of_steps(name: str) -> None:
    fmt = format_named(name)
    assert fmt.divisor == fmt.levels[-1] - fmt.levels[0] == len(fmt.levels) - 1


def test_search_clip__of_equals_takes_the_largest() -> None:
    """Inputs of 0 make every error 0."""
    w = group(1, -2, 0.5, 4).astype(np.float64)
    rule = replace(AWQ_RULES["autoawq"], group_size=2, clip_steps=10)
    assert search_clip(w, np.zeros((3, 4)), rule).tolist() == [[2, 2, 4, 4]]


def test_bound__takes_rows_of_two_weights() -> None:
    answer = bound(Question("int4-row", 1.0, 0.1, 1, columns=2, rows=2))
    assert answer.flips > 0


def test_bound__looks_for_no_lr_beyond_its_range() -> None:
    """Steps of 64 standard deviations reach a cosine of 0.9998, of 128 one of 0.99996."""
    question = Question("int4-row", 1.0, 1.0, 1, dtype="fp32", columns=64)
    last, beyond = (bound(replace(question, lr=lr)).cosine for lr in (LR_RANGE[1], 2 * LR_RANGE[1]))
    assert last is not None
    assert beyond is not None
    assert last < 0.9999 < beyond
    assert bound(question, cosine=0.9999).smallest_lr is None


def test_find_dead_zone__takes_a_binade_of_which_just_half_moved() -> None:
    low, high = BINADES.index(-9), BINADES.index(-8)
    weights, moved = [0] * len(BINADES), [0] * len(BINADES)
    weights[low], moved[low], weights[high] = 2 * MIN_WEIGHTS, MIN_WEIGHTS, MIN_WEIGHTS
    zone = find_dead_zone(BinadeCounts(tuple(weights), tuple(moved)), "bfloat16")
    assert zone.threshold == 2.0**-8
    moved[low] -= 1
    assert not find_dead_zone(BinadeCounts(tuple(weights), tuple(moved)), "bfloat16").detected


def test_keeps_code__leaves_alone_what_only_equals_the_distance() -> None:
    """|delta| + slack is 1, the distance, in float64: 1 - 2^-49, and 8 roundings of sizes that add up to 2."""
    zero, one = np.zeros((1, 1)), np.ones((1, 1))
    threshold, delta = np.array([1.0]), np.array([[1 - 2.0**-49]])
    assert not keeps_code(zero, delta, (one, one), threshold).any()
    assert keeps_code(zero, np.nextafter(delta, 0), (one, one), threshold).all()


def test_is_swallowed__excludes_ties() -> None:
    one = np.ones((1, 1))
    assert not is_swallowed(np.zeros(1), np.array([0.5]), np.ones(1), one)
    assert is_swallowed(np.zeros(1), np.array([np.nextafter(0.5, 0)]), np.ones(1), one)


def test_shells__of_half_a_spacing_do_not_stand() -> None:
    """Signed steps of one spacing with mean 1/2: one mean step makes exactly half a spacing in [1/8, 1/4) of bfloat16."""
    law = StepLaw(np.array([0.5]), np.zeros(1), np.ones(1), signed=True)
    assert shells(law, 0, 2.0**-10, 1, "bfloat16").edges[-1] == 0.25


def test_expected_displacement__of_a_weight_on_the_edge_is_0() -> None:
    """Binades are [2^e, 2^(e+1)), so the edge belongs to the one that stands, also where the drift points inward."""
    law = step_law("adamw")
    options: dict[str, Any] = {"lr": 1e-5, "steps": 100, "dtype": "bfloat16"}
    edge = movable_edge(law, **options)
    assert expected_displacement(np.array([-edge, edge]), law, 1, **options).tolist() == [0, 0]
    assert (expected_displacement(np.nextafter([-edge, edge], 0), law, 1, **options) >= 0).all()
    assert expected_displacement(np.nextafter([-edge], 0), law, 1, **options) > 0


def test_step_ratio__counts_weights_strictly_below_the_radius_and_needs_just_enough() -> None:
    lr = 1e-3
    radius = free_radius(lr, "bfloat16")
    w = np.array([radius / 2] * MIN_WEIGHTS + [radius])
    delta = np.array([lr] * MIN_WEIGHTS + [1.0])
    assert step_ratio(w, delta, lr=lr, steps=1, dtype="bfloat16") == pytest.approx(1, rel=1e-12)
    with pytest.raises(ValueError, match="must move freely"):
        step_ratio(w[1:], delta[1:], lr=lr, steps=1, dtype="bfloat16")


def test_observed_moves__gives_a_weight_on_a_boundary_to_the_upper_piece() -> None:
    moves = observed_moves(np.array([1.0, 1.25]), np.array([1.0, 5.0]))
    rows = [tuple(float(x) for x in row) for row in zip(*moves, strict=True)]
    assert rows == [(1.0, 1.25, 1.0, 1.0), (1.25, 1.5, 5.0, 1.0)]


def test_permutation_wash_test__takes_one_permutation() -> None:
    test = permutation_wash_test(np.zeros(2), np.ones(2), np.zeros(2, int), np.array([0.5]), seed=0, permutations=1)
    assert test.p == 1  # equal shifts: the order is all the same
    assert math.isnan(test.z)


def test_search_symmetric__is_empty_strictly_below_the_smallest() -> None:
    at, below = np.zeros((1, 16), np.float32), np.zeros((1, 16), np.float32)
    at[0, 3], below[0, 3] = SMALLEST, np.nextafter(np.float32(SMALLEST), np.float32(0))
    assert search_symmetric(at).scale != 0
    assert search_symmetric(below).scale == 0


def test_search_one_by_one__is_empty_strictly_below_the_smallest() -> None:
    at, below = np.zeros((1, 16), np.float32), np.zeros((1, 16), np.float32)
    at[0, 3], below[0, 3] = SMALLEST, np.nextafter(np.float32(SMALLEST), np.float32(0))
    assert search_one_by_one(at).scale != 0
    assert search_one_by_one(below).scale == 0


AT_SMALLEST = [
    -3.20000001160798e-14,
    -3.175453674422908e-14,
    -3.21693626598174e-14,
    -3.20000001160798e-14,
    -3.218812274553319e-14,
    -3.191840035007311e-14,
    -3.20000001160798e-14,
    -3.1382092969189576e-14,
    -3.1803092060897487e-14,
    -3.20000001160798e-14,
    -3.20000001160798e-14,
    -3.20000001160798e-14,
    -3.20000001160798e-14,
    -3.179804374453185e-14,
    -3.20000001160798e-14,
    -3.20000001160798e-14,
]
"""Sixteen weights whose fitted scale is exactly `SMALLEST`: one of 440,000 that were drawn."""


def test_q6_k__is_empty_strictly_below_the_smallest() -> None:
    """Its values are zeros either way, as 1e-15 is 0 in float16; the codes tell."""
    w = np.tile(np.array(AT_SMALLEST, np.float32), (1, 16))
    assert (np.abs(search_symmetric(w.reshape(-1, 16)).scale) == SMALLEST).all()
    assert q6_k(w).scales.all()
    assert not q6_k(w / 2).scales.any()


def test_block_box__of_a_signed_absmax_is_held_by_the_largest_of_the_other_sign() -> None:
    """Scales of 12 … 20 smallest numbers are 2 of them; the weight of 20 may shrink to 19, beyond the 18 that come first."""
    w = np.zeros((1, 32), np.float32)
    w[0, 0], w[0, 3], w[0, 5] = -18 * TINY, -2 * TINY, 20 * TINY
    box = block_box(w, format_named("q4_0"))
    assert box.lower[0, 5] == 19 * TINY
    assert box.upper[0, 5] == 20 * TINY


def test_same_scale__reaches_the_largest_number() -> None:
    """All of the last binade has one power of two."""
    statistic = np.array([[1.5 * 2.0**127]], np.float32)
    low, high = same_scale(statistic, format_named("mxfp4-b32"))
    assert (low, high) == (2.0**127, LARGEST)  # type: ignore[comparison-overlap]


def test_block_box__of_a_scale_of_0_is_free_whatever_zeros_come_first() -> None:
    """Up to 4 smallest numbers the scale is 0, and so is every value."""
    w = np.zeros((1, 32), np.float32)
    w[0, 5] = 3 * TINY
    box = block_box(w, format_named("q4_0"))
    assert (box.lower[0, 5], box.upper[0, 5]) == (-4 * TINY, 4 * TINY)


def test_half_away__adds_the_zero_point_to_the_rounded_ratio() -> None:
    """1.5 is 2 and -2.5 is -3 before 1 is added; no format of this rounding has a zero point so far."""
    fmt = format_named("q8_0")
    index = half_away(group(1.5, -2.5, 0.25), group(1), fmt)
    assert (index + fmt.levels[0]).tolist() == [[3, -2, 1]]
