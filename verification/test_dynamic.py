"""Double quantization as a format: the mean of no order, absmaxes read back from 8 bits, and what hangs on them."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from numpy.typing import NDArray

from unforgotten.audit.kernel.simd import NUMPY, available_paths
from unforgotten.audit.sources.flat import pieces
from unforgotten.audit.weights.piece import add_pieces, measure_piece
from unforgotten.audit.weights.sums import Setting
from unforgotten.audit.weights.task import tensor_task
from unforgotten.audit.weights.warming import InMemory
from unforgotten.theory.calculators.bound import Question, bound
from unforgotten.theory.formats.double_quant import double_quantize
from unforgotten.theory.formats.dynamic import (
    BINS,
    NESTED_BLOCK,
    WORST,
    _equal_parts,
    bin_codes,
    dynamic_map,
    exact_mean,
    nested,
)
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import quantize, round_trip
from unforgotten.theory.laws.update import GRID_MODES, survival
from unforgotten.verification.agreement import assert_agree
from unforgotten.verification.chance import rng_for
from unforgotten.verification.domains.strategies import tensors
from unforgotten.verification.oracles import U32, float32

Array = NDArray[Any]
KINDS = ("nf4", "fp4")
SMALLEST = 2.0**-126  # 1 / s is finite from here on
sizes = hnp.arrays(np.float32, st.integers(1, 600), elements=st.floats(0, 2.0**100, width=32))


@given(sizes, st.randoms())
@example(np.array([2.0**24, 1, 1, 1], np.float32), None)
def test_exact_mean__is_the_rounded_mean_in_any_order(own: Array, random: Any) -> None:
    """Of float64, and that of float32: two roundings of a quotient of exact numbers, and one of the sum."""
    found = exact_mean(own)
    order = np.arange(len(own))
    if random is not None:
        random.shuffle(order)
    assert exact_mean(own[order]) == found
    exact = sum((Fraction(float(x)) for x in own), Fraction(0)) / len(own)
    neighbours = {float32(exact * (1 + Fraction(k, 2**52))) for k in (-2, 0, 2)}
    assert Fraction(float(found)) in neighbours


@given(sizes, st.floats(0.5, 2))
def test_nested__reads_back_what_is_near_whatever_the_mean(own: Array, factor: float) -> None:
    offset = np.float32(float(exact_mean(own)) * factor)
    found = nested(own, offset)
    away = np.abs((own - offset).astype(np.float32))
    assert found.absmax.tolist() == [away[i : i + NESTED_BLOCK].max() for i in range(0, len(own), NESTED_BLOCK)]
    s = np.repeat(found.absmax.astype(np.float64), NESTED_BLOCK)[: len(own)]
    error = np.abs(found.read.astype(np.float64) - own)
    slack = 8 * U32 * (own + s + float(offset))  # the difference, the quotient, the bin, the product, the sum
    assert (error <= WORST * s + slack)[s >= SMALLEST].all()


@pytest.mark.parametrize("parts", [2, 4, 8, 16, 32, 64])
def test_equal_parts__are_counted_from_the_nearer_end(parts: int) -> None:
    low, step = Fraction(float(np.float32(0.1))), Fraction(float((np.float32(1) - np.float32(0.1)) / np.float32(parts)))
    expected = [low + step * i if 2 * i < parts else 1 - step * (parts - i) for i in range(parts + 1)]
    assert [Fraction(float(x)) for x in _equal_parts(parts)] == [float32(x) for x in expected]


def test_bin_codes__are_nearest_to_the_centres() -> None:
    centres = np.linspace(-1, 1, BINS + 1)
    chosen = np.append(np.arange(0, BINS + 1, 37), BINS)
    levels = dynamic_map().astype(np.float64)
    distance = np.abs(levels[None, :] - centres[chosen, None])
    reached = distance[np.arange(len(chosen)), bin_codes()[chosen]]
    assert (reached <= distance.min(axis=1) + 2.0**-50).all()


def test_nested__attains_its_bound() -> None:
    """Halfway between two of the widest parts, so that the bound is not one of something larger."""
    levels = dynamic_map().astype(np.float64)
    middle = (levels[-2] + levels[-3]) / 2
    own = np.array([2.0, 1 + middle], np.float32)
    error = abs(float(nested(own, np.float32(1)).read[1]) - float(own[1]))
    assert 0.99 * WORST < error <= WORST


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (63,), (7, 65), (300, 96), (3, 5, 70)])
@pytest.mark.parametrize("scale", [0.0, 1e-42, 2e-39, 1e-37, 0.02, 3e30])
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip__is_double_quantize(kind: str, scale: float, shape: tuple[int, ...], dtype: type) -> None:
    """In every shape and size, where the last block is a part of one, too: its absmax has a floor before it is nested."""
    w: Array = (scale * rng_for("dq", kind, shape).uniform(-1, 1, shape)).astype(dtype)
    expected = double_quantize(w, format_named(f"{kind}-b64"))
    codes, _ = quantize(w, format_named(f"{kind}-b64-dq"))
    assert np.array_equal(codes, expected.codes)
    assert np.array_equal(round_trip(w, format_named(f"{kind}-b64-dq")), expected.values)


@given(st.data(), st.sampled_from(KINDS))
def test_round_trip__is_double_quantize_on_hard_blocks(data: st.DataObject, kind: str) -> None:
    w = data.draw(tensors(format_named(f"{kind}-b32")))
    w = np.clip(w, -(2.0**100), 2.0**100).astype(np.float32)
    expected = double_quantize(w, format_named(f"{kind}-b32")).values
    assert np.array_equal(round_trip(w, format_named(f"{kind}-b32-dq")), expected)


def test_codes_are_those_without_it_and_values_are_not() -> None:
    w = rng_for("dq codes").normal(size=(300, 64)).astype(np.float32)
    plain, nested_format = format_named("nf4-b64"), format_named("nf4-b64-dq")
    assert np.array_equal(quantize(w, plain)[0], quantize(w, nested_format)[0])
    assert (round_trip(w, plain) != round_trip(w, nested_format)).mean() > 0.9


@pytest.mark.parametrize("name", ["nf4-b64-dq", "fp4-b64-dq"])
def test_weights_that_are_not_finite_are_refused(name: str) -> None:
    w = np.ones((2, 64), np.float32)
    w[1, 3] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        round_trip(w, format_named(name))


@pytest.mark.parametrize("path", available_paths())
@pytest.mark.parametrize("name", ["nf4-b64-dq", "fp4-b32-dq"])
def test_audit__measures_it_whole_as_the_reference_does(name: str, path: str) -> None:
    """One mean for all pieces: the second half of the rows is ten times as large as the first."""
    rng = rng_for("dq audit")
    w = rng.normal(0, 0.02, (70, 129)).astype(np.float32)
    w[35:] *= 10
    w_new = (w + 1e-3 * rng.normal(size=w.shape)).astype(np.float32)
    fmt = format_named(name)
    task = tensor_task(InMemory(w), InMemory(w_new), "w", [fmt, format_named("nf4-b64")], path)
    if path == NUMPY:
        assert task.ways[name] == "whole"
        return
    found = add_pieces(task, [measure_piece(task, piece) for piece in pieces(task.shape, 1000)])
    for mode in GRID_MODES:
        assert_agree(found.survival[Setting(name, mode)], survival(w, w_new, fmt, mode))


def test_theory_has_no_law_for_it() -> None:
    with pytest.raises(ValueError, match="proportional to the block's absmax, got format='nf4-b64-dq'"):
        bound(Question(format="nf4-b64-dq", std=0.02, lr=1e-5, steps=10))
