"""Every finite float16 and bfloat16, in every format, at pinned scales: no sample, no example left out.

Scales are powers of two, so that nothing is rounded before the code is, and an oracle in float64 is exact; and one
scale that is not, where only what holds for every scale is asserted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from unforgotten.theory.formats.names import Format, format_named
from unforgotten.theory.formats.reference import Grid, code_units, decode, encode
from unforgotten.theory.geometry.preimages import weight_cells
from unforgotten.verification.domains.strategies import ALL_FORMAT_NAMES
from unforgotten.verification.oracles import ETA32, U32
from unforgotten.verification.recording.tallies import record

Array = NDArray[Any]
DTYPES: Mapping[str, Any] = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
EXPONENTS = (-16, -3, 0, 9)  # of the pinned steps
ODD_STEP = np.float32(0.0123)
PATTERNS = {"bfloat16": 65_280, "float16": 63_488}  # finite ones, both zeros
REACH = 2.0**100  # LLM.int8 multiplies by 127; quotients by the smallest step stay finite

every_format = pytest.mark.parametrize("name", ALL_FORMAT_NAMES)
every_dtype = pytest.mark.parametrize("dtype", sorted(DTYPES))


def lattice(dtype: str) -> Array:
    """Every finite number of the dtype, ascending, as one block of float32, (1, n)."""
    with np.errstate(invalid="ignore"):  # signalling nans
        values = np.arange(2**16, dtype=np.uint16).view(DTYPES[dtype]).astype(np.float32)
    finite = np.sort(values[np.isfinite(values)])
    assert finite.size == PATTERNS[dtype]
    return finite[None, np.abs(finite) <= REACH]


def pinned(fmt: Format, step: np.float32) -> Grid:
    """A grid of that step; a zero point a third of the way where the format has one, a minimum of -2 steps."""
    scale = np.full((1, 1), step * np.float32(fmt.divisor if fmt.arithmetic == "multiply" else 1))
    zero = np.zeros_like(scale)
    if fmt.zero == "whole":
        zero += np.float32(int(fmt.levels[0]) + len(fmt.levels) // 3)
    if fmt.zero == "float":
        zero += np.float32(2.25)
    low = np.full_like(scale, -2 * step) if fmt.zero == "minimum" else None
    encoder = Grid(1 / scale, zero) if fmt.arithmetic == "inverse" else None
    return Grid(scale, zero, low, encoder)


def steps_of(fmt: Format) -> list[np.float32]:
    return [np.ldexp(np.float32(1), e) for e in EXPONENTS] if fmt.name != "fp8-cast" else [np.float32(1)]


def exact_units(w: Array, grid: Grid, step: np.float32) -> Array:
    """Code units in float64, where a step of a power of two makes the quotient exact; the sums are, below 2^53."""
    low = 0.0 if grid.low is None else grid.low.item()
    return np.asarray((w.astype(np.float64) - low) / np.float64(step))


@every_dtype
@every_format
def test_encode__is_the_nearest_level_exhaustively(name: str, dtype: str) -> None:
    """|v - level| is least, in exact arithmetic; of two as near the rounding takes one. Q4_0 and its like add 1/2 first.

    That sum is rounded in float32: v is then off by up to u (|v| + K), where it matters.
    """
    fmt, w = format_named(name), lattice(dtype)
    levels = np.asarray(fmt.levels)
    for step in steps_of(fmt):
        grid = pinned(fmt, step)
        v = np.clip(exact_units(w, grid, step), -(2.0**40), 2.0**40)
        codes = encode(w, grid, fmt).astype(int)
        record("cells", fmt, dtype, float(step), exhaustive=w.size)
        offset = grid.zero.item()
        after = np.clip(np.searchsorted(levels - offset, v), 1, len(levels) - 1)
        near = np.stack([after - 1, after])
        distance = np.abs(v - (levels[near] - offset))
        sums = fmt.rounding == "half-up" or fmt.zero_first or fmt.zero == "float"
        # a threshold is rounded to float32 once, and so is a difference from `low`
        size = np.abs(v) + (len(levels) + abs(offset) if sums or grid.low is not None else 0)
        slack = 2 * U32 * size if sums or grid.low is not None else U32 * np.abs(v)
        chosen = np.abs(v - (levels[codes] - offset))
        assert (chosen <= distance.min(axis=0) + slack).all()


UNROUNDED = ("half-even", "half-lower", "half-away")
EXACT_NAMES = [
    n
    for n in ALL_FORMAT_NAMES
    if (f := format_named(n)).rounding in UNROUNDED and not f.zero_first and f.zero in ("none", "whole")
]


@every_dtype
@pytest.mark.parametrize("name", EXACT_NAMES)
def test_encode__takes_the_tie_that_its_rounding_names_exhaustively(name: str, dtype: str) -> None:
    """Equality, ties and all, where no sum is rounded: three rules written again in float64."""
    fmt, w = format_named(name), lattice(dtype)
    for step in steps_of(fmt):
        grid = pinned(fmt, step)
        v = np.clip(exact_units(w, grid, step), -(2.0**40), 2.0**40)
        whole = np.rint(v) if fmt.rounding == "half-even" else np.trunc(v + np.copysign(0.5, v))
        expected = np.clip(whole + grid.zero.item(), fmt.levels[0], fmt.levels[-1]) - fmt.levels[0]
        if fmt.rounding == "half-lower":
            expected = np.searchsorted(fmt.thresholds.astype(np.float64), v, side="left")
        assert np.array_equal(encode(w, grid, fmt), expected)


@every_dtype
@every_format
def test_encode__is_monotone_exhaustively(name: str, dtype: str) -> None:
    fmt, w = format_named(name), lattice(dtype)
    for step in (*steps_of(fmt), ODD_STEP):
        codes = encode(w, pinned(fmt, step), fmt)[0].astype(int)
        record("weight_cells", fmt, dtype, float(step), "monotone", exhaustive=w.size)
        assert (np.diff(codes) >= 0).all()
        span = 2 * (fmt.levels[-1] - fmt.levels[0]) + 4
        if np.abs(w).max() > span * step:  # float16 ends before 448 steps of 2^9
            assert (codes[0], codes[-1]) == (0, len(fmt.levels) - 1)


@every_dtype
@every_format
def test_round_trip__errs_by_half_a_step_exhaustively(name: str, dtype: str) -> None:
    """Inside the levels, at any step: half the wider gap beside the level, and the roundings of float32.

    Ratio, sum and value have at most 8 roundings of numbers below (|v| + K + |zero|) steps; eta where they underflow.
    """
    fmt, w = format_named(name), lattice(dtype)
    levels = np.asarray(fmt.levels)
    for step in (*steps_of(fmt), *([ODD_STEP] if fmt.name != "fp8-cast" else [])):
        grid = pinned(fmt, step)
        codes = encode(w, grid, fmt)
        error = np.abs(decode(codes, grid, fmt).astype(np.float64) - w)
        v = exact_units(w, grid, step)
        offset = grid.zero.item()
        inside = (levels[0] <= v + offset) & (v + offset <= levels[-1])
        gaps = np.diff(levels)
        wider = np.maximum(np.append(gaps, 0), np.insert(gaps, 0, 0))[codes.astype(int)]
        slack = 8 * U32 * (np.abs(v) + len(levels) + abs(offset)) * step + 8 * ETA32
        assert inside.sum() > 100
        assert (error <= wider / 2 * np.float64(step) + slack)[inside].all()


@every_dtype
@every_format
def test_round_trip__is_idempotent_exhaustively(name: str, dtype: str) -> None:
    """On a pinned grid a value has the code that made it, but where two codes share it: FP4's +0 and -0."""
    fmt, w = format_named(name), lattice(dtype)
    for step in (*steps_of(fmt), ODD_STEP):
        grid = pinned(fmt, step)
        codes = encode(w, grid, fmt)
        once = decode(codes, grid, fmt)
        again = encode(once, grid, fmt)
        shared = np.asarray(fmt.levels)[codes] == np.asarray(fmt.levels)[again]
        assert ((again == codes) | shared).all()
        assert np.array_equal(decode(again, grid, fmt), once)
        assert (again == codes).all() or fmt.name.startswith("fp4")


@every_dtype
@every_format
def test_weight_cells__say_the_code_exhaustively(name: str, dtype: str) -> None:
    """A number has code k if and only if it lies in the interval of k: bisection against every value."""
    fmt, w = format_named(name), lattice(dtype)
    for step in (steps_of(fmt)[0], ODD_STEP):
        grid = pinned(fmt, step)
        every = np.arange(len(fmt.levels))[None]
        cell = weight_cells(every, grid, fmt)
        record("weight_cells", fmt, dtype, float(step), exhaustive=w.size)
        codes = encode(w, grid, fmt)[0].astype(int)
        held = (cell.lower[0][codes] <= w[0]) & (w[0] <= cell.upper[0][codes])
        assert held.all()
        used = cell.lower[0] <= cell.upper[0]
        assert (cell.upper[0][used][:-1] < cell.lower[0][used][1:]).all()  # so no other interval holds it


def test_code_units__are_exact_at_pinned_steps() -> None:
    """What the oracle above rests on: the kernel's own quotient has no rounding there."""
    for name in ("int4-g8", "nf4-b8", "llmint8-row", "int4-g8-ao", "fp8-row"):
        fmt, w = format_named(name), lattice("float16")
        for step in steps_of(fmt):
            grid = pinned(fmt, step)
            assert np.array_equal(code_units(w, grid, fmt).astype(np.float64), exact_units(w, grid, step))
