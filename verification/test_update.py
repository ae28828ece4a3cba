from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unforgotten.theory.formats.names import Format, format_named
from unforgotten.theory.formats.reference import to_blocks
from unforgotten.theory.geometry.cells import cells
from unforgotten.theory.laws.update import CHUNK_WEIGHTS, GRID_MODES, POSITION_BINS, GridMode, Survival, add, survival
from unforgotten.verification.chance import rng_for
from unforgotten.verification.domains.strategies import ALL_FORMAT_NAMES, FORMAT_NAMES, NORMAL_KINDS, Pair, pairs
from unforgotten.verification.oracles import U64, Parameters, block_code, block_value, exact_units, fit_block

modes: st.SearchStrategy[GridMode] = st.sampled_from(GRID_MODES)
NOT_PER_TENSOR = tuple(n for n in FORMAT_NAMES if "tensor" not in n and n != "nf4-b5")
SIGN_SYMMETRIC = ("int4-g8", "int2-g8", "int3-row", "int8-row", "int8-tensor", "llmint8-row")


class Weight(NamedTuple):
    """One weight of the exact oracle."""

    delta: Fraction
    surviving: Fraction
    code: int
    code_new: int
    flip_probability: Fraction
    probability_slack: Fraction


def exact_weights(pair: Pair, mode: GridMode) -> Iterator[Weight]:
    """Every weight of a pair, in rationals, by code of its own."""
    before, after = to_blocks(pair.w, pair.fmt), to_blocks(pair.w_new, pair.fmt)
    real = to_blocks(np.ones(pair.w.shape), pair.fmt) > 0
    partial_tensor = pair.fmt.block == "flat" and not real.all()
    for i, rows in enumerate(zip(before, after, real, strict=True)):
        partial = partial_tensor and i == len(before) - 1
        old, new = ([Fraction(float(x)) for x in row[rows[2]]] for row in rows[:2])
        grid, grid_new = (
            fit_block(block, pair.fmt, partial=partial, tensor_absmax=Fraction(float(np.abs(w).max())))
            for block, w in ((old, pair.w), (new, pair.w_new))
        )
        grid_new = grid_new if mode == "adaptive" else grid
        for w, w_new in zip(old, new, strict=True):
            weight = exact_weight(w, w_new, grid, grid_new, pair.fmt, partial=partial)
            yield as_pinned(weight) if sets_the_scale(w, old, pair.fmt) else weight


def sets_the_scale(w: Fraction, block: list[Fraction], fmt: Format) -> bool:
    """Whether w is an end of its block: the largest magnitude, or an end of a range that holds 0."""
    if fmt.statistic == "none":
        return False
    if fmt.statistic.endswith("absmax"):
        return abs(w) == max(map(abs, block))
    if fmt.zero in ("minimum", "float"):
        return w in (min(block), max(block))
    return (w > 0 and w == max(block)) or (w < 0 and w == min(block))


def as_pinned(weight: Weight) -> Weight:
    """A weight whose place is known: its "probability" is what it did."""
    flipped = Fraction(int(weight.code != weight.code_new))
    return weight._replace(flip_probability=flipped, probability_slack=Fraction(0))


def exact_weight(
    w: Fraction, w_new: Fraction, grid: Parameters, grid_new: Parameters, fmt: Format, *, partial: bool
) -> Weight:
    code, code_new = (block_code(x, g, fmt, partial=partial) for x, g in ((w, grid), (w_new, grid_new)))
    value, value_new = (block_value(k, g, fmt) for k, g in ((code, grid), (code_new, grid_new)))
    assert value is not None
    assert value_new is not None
    v, v_new = (exact_units(x, g, fmt, partial=partial) for x, g in ((w, grid), (w_new, grid_new)))
    shift, width = v_new - v, Fraction(float(cells(fmt).width[code]))
    outward = (code == 0 and shift < 0) or (code == len(fmt.levels) - 1 and shift > 0)
    inside = Fraction(0) if outward or not width else min(abs(shift) / width, Fraction(1))
    # float64: a difference, a product or quotient and a sum for each v, their difference, a quotient: 8 roundings
    size = abs(v) + abs(v_new) + abs(grid.zero) + abs(grid_new.zero)
    slack = 8 * Fraction(U64) * size / width if width else Fraction(1)
    return Weight(w_new - w, value_new - value, code, code_new, inside, min(slack, Fraction(1)))


def assert_sum(got: float, terms: list[Fraction]) -> None:
    """A float64 sum of squares or products: 2 roundings in each factor, 1 in the product, n in the sum."""
    slack = (len(terms) + 5) * Fraction(U64) * sum(map(abs, terms))
    assert abs(Fraction(got) - sum(terms)) <= slack


@given(pairs(names=ALL_FORMAT_NAMES), modes)
def test_survival__counts_what_the_exact_oracle_counts(pair: Pair, mode: GridMode) -> None:
    got = survival(pair.w, pair.w_new, pair.fmt, mode)
    exact = list(exact_weights(pair, mode))
    top = len(pair.fmt.levels) - 1
    assert got.weights == len(exact) == pair.w.size
    assert got.unchanged == sum(x.delta == 0 for x in exact)
    assert got.code_flips == sum(x.code != x.code_new for x in exact)
    assert got.value_changes == sum(x.surviving != 0 for x in exact)
    assert sum(got.positions) == sum(x.delta != 0 and 0 < x.code < top for x in exact)


@given(pairs(names=ALL_FORMAT_NAMES), modes)
def test_survival__sums_what_the_exact_oracle_sums(pair: Pair, mode: GridMode) -> None:
    got = survival(pair.w, pair.w_new, pair.fmt, mode)
    exact = list(exact_weights(pair, mode))
    assert_sum(got.delta_sq, [x.delta**2 for x in exact])
    assert_sum(got.surviving_sq, [x.surviving**2 for x in exact])
    # The sign of a product may cancel: the slack is by the sum of sizes, as in the other two.
    assert_sum(got.dot, [x.surviving * x.delta for x in exact])


@given(pairs(names=ALL_FORMAT_NAMES), modes)
def test_survival__expects_the_flips_of_the_exact_law(pair: Pair, mode: GridMode) -> None:
    got = survival(pair.w, pair.w_new, pair.fmt, mode)
    exact = list(exact_weights(pair, mode))
    slack = sum(x.probability_slack for x in exact) + Fraction(U64) * len(exact) ** 2
    expected = sum(x.flip_probability for x in exact)
    variance = sum(x.flip_probability * (1 - x.flip_probability) for x in exact)
    assert abs(Fraction(got.expected_flips) - expected) <= slack
    assert abs(Fraction(got.flips_variance) - variance) <= 2 * slack


@given(pairs(names=ALL_FORMAT_NAMES), modes)
def test_survival__ratios_are_those_of_the_sums(pair: Pair, mode: GridMode) -> None:
    got = survival(pair.w, pair.w_new, pair.fmt, mode)
    if not got.delta_sq:
        assert math.isnan(got.gain)
        assert math.isnan(got.cosine)
        return
    assert got.gain == got.dot / got.delta_sq
    if got.surviving_sq:  # Cauchy-Schwarz, but for the sums (n + 5 each), two roots, a product and a quotient
        assert abs(got.cosine) <= 1 + U64 * (2 * (got.weights + 5) + 8)


@given(pairs(names=ALL_FORMAT_NAMES), modes)
def test_survival__of_no_update_is_nothing(pair: Pair, mode: GridMode) -> None:
    got = survival(pair.w, pair.w, pair.fmt, mode)
    assert got.unchanged == got.weights
    assert got.unchanged_fraction == 1
    assert (got.code_flips, got.value_changes, got.expected_flips, got.dot) == (0, 0, 0, 0)
    assert math.isnan(got.position_distance)


@given(pairs(names=ALL_FORMAT_NAMES))
def test_survival__on_a_fixed_grid_changes_a_value_only_by_a_flip(pair: Pair) -> None:
    got = survival(pair.w, pair.w_new, pair.fmt, "fixed")
    assert got.value_changes <= got.code_flips <= got.weights - got.unchanged


@given(pairs(names=NOT_PER_TENSOR), modes)
def test_survival__of_a_concatenation_adds_up(pair: Pair, mode: GridMode) -> None:
    """Rows of whole blocks are tensors of their own."""
    size = pair.fmt.block_size or 1
    widen = ((0, 0), (0, -pair.w.shape[1] % size))
    w, w_new = np.pad(pair.w, widen), np.pad(pair.w_new, widen)
    rows = [survival(a, b, pair.fmt, mode) for a, b in zip(w, w_new, strict=True)]
    together, parts = survival(w, w_new, pair.fmt, mode), add(rows)
    assert counts_of(together) == counts_of(parts)
    slack = U64 * 2 * w.size  # two orders of a sum of w.size terms, each at most half a count of roundings
    for a, b in ((together.delta_sq, parts.delta_sq), (together.surviving_sq, parts.surviving_sq)):
        assert abs(a - b) <= slack * b


def counts_of(s: Survival) -> tuple[object, ...]:
    return s.weights, s.unchanged, s.code_flips, s.value_changes, s.positions


@given(pairs(names=SIGN_SYMMETRIC), modes)
def test_survival__mirrors_in_symmetric_formats(pair: Pair, mode: GridMode) -> None:
    got = survival(pair.w, pair.w_new, pair.fmt, mode)
    mirrored = survival(-pair.w, -pair.w_new, pair.fmt, mode)
    assert counts_of(mirrored)[:4] == counts_of(got)[:4]
    assert (mirrored.dot, mirrored.delta_sq, mirrored.surviving_sq) == (got.dot, got.delta_sq, got.surviving_sq)


def scales_with_its_weights(name: str) -> bool:
    """Neither clipped scales (HQQ), nor stored as float16, nor rounded to a lattice of their own, nor absent."""
    fmt = format_named(name)
    plain = fmt.scale_rule == "quotient" and fmt.storage == "float32"
    return plain and fmt.statistic in ("absmax", "range")


EQUIVARIANT = [name for name in ALL_FORMAT_NAMES if scales_with_its_weights(name)]


@given(pairs(names=EQUIVARIANT, kinds=NORMAL_KINDS), modes, st.integers(-20, 20))
def test_survival__scales_with_powers_of_two(pair: Pair, mode: GridMode, exponent: int) -> None:
    size = np.abs(np.stack([pair.w, pair.w_new]))
    if ((size != 0) & ((size < 2.0**-60) | (size > 2.0**100))).any() or has_floor_block(pair):
        exponent = 0
    factor = np.float32(2.0**exponent)
    got = survival(pair.w, pair.w_new, pair.fmt, mode)
    scaled = survival(pair.w * factor, pair.w_new * factor, pair.fmt, mode)
    assert counts_of(scaled) == counts_of(got)
    assert scaled.dot == got.dot * 4.0**exponent
    assert scaled.expected_flips == got.expected_flips


def has_floor_block(pair: Pair) -> bool:
    """A zero block is read at a fixed scale (codebooks' 1e-38, torchao, compressed-tensors), which does not move with w."""
    zero = (to_blocks(pair.w, pair.fmt) == 0).all(axis=1) | (to_blocks(pair.w_new, pair.fmt) == 0).all(axis=1)
    fixed = pair.fmt.floor or pair.fmt.least_scale or pair.fmt.empty_scale
    return bool(fixed and zero.any())


@pytest.mark.parametrize("mode", GRID_MODES)
@pytest.mark.parametrize("name", ["nf4-b64", "fp4-b64", "int4-g64", "llmint8-row"])
@pytest.mark.parametrize("chunk", [1, 128])
def test_survival__does_not_depend_on_chunks(
    chunk: int, name: str, mode: GridMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partial last block is found in the last chunk, and only there; a chunk holds a block at least."""
    rng = rng_for(name, mode)
    w = rng.normal(size=(7, 91)).astype(np.float32)
    w_new = (w + 0.01 * rng.normal(size=w.shape)).astype(np.float32)
    fmt = format_named(name)
    whole = survival(w, w_new, fmt, mode)
    monkeypatch.setattr("unforgotten.theory.laws.update.CHUNK_WEIGHTS", chunk)
    parts = survival(w, w_new, fmt, mode)
    assert w.size < CHUNK_WEIGHTS
    assert counts_of(parts) == counts_of(whole)
    slack = U64 * 2 * w.size * whole.delta_sq
    assert abs(parts.delta_sq - whole.delta_sq) <= slack


def test_survival__sees_an_update_that_is_on_the_grid() -> None:
    """int4, step 1: one step of one weight survives whole, half a step of another not at all."""
    w = np.array([[7.0, 3, 0, -2, 0, 0, 0, 0]], np.float32)
    delta = np.array([[0, 1.0, 0.25, 0, 0, 0, 0, 0]], np.float32)
    got = survival(w, w + delta, format_named("int4-g8"), "adaptive")
    assert (got.code_flips, got.value_changes, got.unchanged) == (1, 1, 6)
    assert (got.dot, got.delta_sq, got.surviving_sq) == (1.0, 1.0625, 1.0)
    assert got.expected_flips == 1.25


def test_survival__needs_no_law_for_the_entry_that_sets_the_scale() -> None:
    """absmax sits at the far end of its cell: inward by half its width it never flips, and is not expected to."""
    w = np.array([[7.0, 3.25, 0, 0, 0, 0, 0, 0]], np.float32)
    delta = np.array([[-0.25, 0.25, 0, 0, 0, 0, 0, 0]], np.float32)
    got = survival(w, w + delta, format_named("int4-g8"), "fixed")
    assert (got.code_flips, got.expected_flips, got.flips_variance) == (1, 0.25, 0.1875)


def test_survival__tells_a_moved_scale_from_a_flip() -> None:
    """The largest weight doubles: codes of the others halve, or stay where the value moves with the scale."""
    w = np.array([[7.0, 0.1, 0, 0, 0, 0, 0, -7.0]], np.float32)
    got = survival(w, 2 * w, format_named("int4-g8"), "adaptive")
    assert (got.code_flips, got.value_changes) == (0, 2)


def test_position_distance__is_0_for_one_weight_in_every_bin_and_large_for_one_bin() -> None:
    even = survival_with_positions((3,) * POSITION_BINS)
    one = survival_with_positions((5, *[0] * (POSITION_BINS - 1)))
    assert even.position_distance == 0
    assert one.position_distance == 1 - 1 / POSITION_BINS


def survival_with_positions(positions: tuple[int, ...]) -> Survival:
    return Survival(1, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, positions)


@given(st.lists(pairs(names=("int4-g8",)), min_size=1, max_size=4), st.data())
def test_add__does_not_depend_on_the_order(many: list[Pair], data: st.DataObject) -> None:
    rows = [survival(p.w, p.w_new, p.fmt, "fixed") for p in many]
    assert add(data.draw(st.permutations(rows))) == add(rows)


def test_add__refuses_nothing() -> None:
    with pytest.raises(ValueError, match="at least one tensor"):
        add([])


@pytest.mark.parametrize("mode", GRID_MODES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_survival__refuses_weights_that_are_not_finite(mode: GridMode, bad: float) -> None:
    w = np.ones((1, 8), np.float32)
    for a, b in ((w, w * np.float32(bad)), (w * np.float32(bad), w)):
        with pytest.raises(ValueError, match="finite"):
            survival(a, b, format_named("int4-g8"), mode)


def test_survival__refuses_values_that_overflow() -> None:
    """LLM.int8 multiplies 127 * absmax before 1 / 127: beyond 2.68e36 the library returns inf, and D has no length."""
    w = np.full((1, 4), 2.7e36, np.float32)
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="overflow of float32"):
        survival(w, w, format_named("llmint8-row"), "adaptive")


def test_survival__refuses_different_shapes() -> None:
    with pytest.raises(ValueError, match="one shape"):
        survival(np.ones((2, 8)), np.ones((1, 8)), format_named("int4-g8"), "fixed")


def test_encode__on_a_fixed_grid_clips_what_overflows() -> None:
    """A ratio beyond float32 has the end code, as a smaller one has, and not the code of 0."""
    w = np.array([[1e-30] * 8], np.float32)
    w_new = np.array([[1e30] * 8], np.float32)
    for name in ("int4-g8", "nf4-b8", "fp4-b8", "int8-row"):
        got = survival(w, w_new, format_named(name), "fixed")
        assert (got.code_flips, got.expected_flips) == (0, 0)
