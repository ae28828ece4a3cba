from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from hashlib import blake2b
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from unforgotten.theory.calculators.bound import Question, bound
from unforgotten.theory.formats.dither import BITS, dithers, tensor_seed
from unforgotten.theory.formats.names import Format, deterministic_format_named, format_named
from unforgotten.theory.formats.reference import fit_grid, from_blocks, quantize, round_trip, to_blocks
from unforgotten.theory.geometry.cells import cells
from unforgotten.theory.geometry.preimages import weight_cells
from unforgotten.theory.laws.boundary import shape_of
from unforgotten.theory.laws.update import survival
from unforgotten.verification.chance import hoeffding_radius, rng_for
from unforgotten.verification.domains.strategies import tensors

NAMES = ("int4-g64-dither", "int4-row-dither3", "int8-row-dither", "int2-tensor-dither41", "int3-g32-dither")
formats = st.sampled_from(NAMES).map(format_named)
MASK = 2**64 - 1


@st.composite
def dithered_pairs(draw: st.DrawFn) -> tuple[NDArray[Any], Format]:
    """Draw a tensor and a dithered format. Shrinks to zeros."""
    fmt = draw(formats)
    return draw(tensors(replace(fmt, rounding="half-even"))), fmt


def splitmix(seed: int, count: int) -> list[Fraction]:
    """Return the numbers of the generator by its definition, in Python's integers."""
    state = int.from_bytes(blake2b(seed.to_bytes(8, "big"), digest_size=8).digest(), "big")
    found = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        found.append(Fraction((z ^ (z >> 31)) >> (64 - BITS), 2**BITS))
    return found


@given(st.integers(0, MASK), st.integers(1, 9))
def test_dithers__are_those_of_splitmix64(seed: int, count: int) -> None:
    got = dithers((3, count), seed)
    assert got.dtype == np.float32
    assert [Fraction(x) for x in got.ravel().tolist()] == splitmix(seed, 3 * count)


def test_dithers__are_uniform_and_differ_by_seed() -> None:
    one, other = dithers((400, 500), 0), dithers((400, 500), 1)
    places = np.arange(1, 101) / 100
    empirical = np.searchsorted(np.sort(one.ravel()), places) / one.size
    assert np.abs(empirical - places).max() <= hoeffding_radius(one.size)
    both = (one < 0.5) == (other < 0.5)
    assert abs(both.mean() - 0.5) <= hoeffding_radius(one.size)
    neighbours = (one[:, 1:] < 0.5) == (one[:, :-1] < 0.5)
    assert abs(neighbours.mean() - 0.5) <= 2 * hoeffding_radius(neighbours.size // 2)
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="seed must be in"):
            dithers((1, 1), seed)


@given(dithered_pairs())
def test_round_trip__takes_a_dithered_weight_to_a_neighbour(case: tuple[NDArray[Any], Format]) -> None:
    """By the exact rule: up where the fraction of the float32 ratio, taken in float32, and u are at least 1 together."""
    w, fmt = case
    codes, grid = quantize(w, fmt)
    blocks = to_blocks(w, fmt)
    scale = np.where(grid.scale == 0, np.float32(1), grid.scale)
    with np.errstate(over="ignore", under="ignore"):
        ratio = np.where(grid.scale == 0, np.float32(0), blocks / scale)
    top = int(fmt.levels[-1])
    expected = []
    for x, dither in zip(ratio.ravel(), splitmix(fmt.seed, blocks.size), strict=True):
        below = math.floor(x)
        part = Fraction(float(x - np.float32(below)))
        expected.append(min(max(below + int(part + dither >= 1), -top), top) + top)
    assert np.array_equal(codes, from_blocks(np.array(expected).reshape(blocks.shape), w.shape, fmt))


def test_round_trip__is_unbiased_where_rounding_to_nearest_loses_the_update() -> None:
    """Weights on the grid and an update of a tenth of a step: T11 (a), which a shared dither passes whole on average."""
    fmt, plain = format_named("int4-g64-dither"), format_named("int4-g64")
    w = rng_for("on the grid").integers(-7, 7, (500, 64)).astype(np.float32)
    w[:, 0] = 7
    moved = w + np.float32(0.1)
    moved[:, 0] = 7
    assert np.array_equal(round_trip(w, plain), round_trip(moved, plain))
    assert np.array_equal(round_trip(w, fmt), w)
    passed = (round_trip(moved, fmt) - w)[:, 1:]
    assert abs(passed.mean() - 0.1) <= hoeffding_radius(passed.size) < 0.05
    errors = (round_trip(moved, format_named("int4-g64-dither5")) - moved)[:, 1:]
    assert abs(errors.mean()) <= hoeffding_radius(errors.size)


def test_tensor_seed__gives_every_tensor_its_own_dither() -> None:
    fmt = format_named("int4-g64-dither2")
    a, b = tensor_seed(fmt, "a.weight"), tensor_seed(fmt, "b.weight")
    assert a == tensor_seed(fmt, "a.weight")
    assert len({fmt.seed, a.seed, b.seed, tensor_seed(format_named("int4-g64-dither"), "a.weight").seed}) == 4
    plain = format_named("int4-g64")
    assert tensor_seed(plain, "a.weight") is plain


@pytest.mark.parametrize(
    "name", ["int4-g64-dither0", "int4-g64-dither07", "int4-g64-dither1234567890", "nf4-b64-dither"]
)
def test_format_named__has_one_name_for_one_dither(name: str) -> None:
    with pytest.raises(ValueError, match="format must be one of"):
        format_named(name)


def test_dithered_formats__are_refused_where_codes_are_taken_for_nearest() -> None:
    """Never computed as something else: cells, the laws of rounding to nearest, the bound, the kernel of the audit."""
    fmt = format_named("int4-row-dither")
    w = np.array([[7.0, 0.3]], np.float32)
    grid = fit_grid(w, fmt)
    calls: tuple[Callable[[], object], ...] = (
        lambda: fmt.thresholds,
        lambda: shape_of(fmt),
        lambda: cells(fmt),
        lambda: weight_cells(np.array([[1]]), grid, fmt),
        lambda: survival(w, w, fmt, "adaptive"),
        lambda: bound(Question("int4-row-dither", std=0.02, lr=1e-5, steps=10)),
        lambda: deterministic_format_named("int4-row-dither"),
    )
    for call in calls:
        with pytest.raises(
            ValueError, match=r"format must round to nearest here, got the dithered format='int4-row-dither'"
        ):
            call()
    assert deterministic_format_named("int4-row") == format_named("int4-row")
