"""What the tables of `vector_rules` promise, asked of exact numbers."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from numba import njit
from numpy.typing import NDArray

from unforgotten.audit.kernel.bits import block_magnitudes
from unforgotten.audit.kernel.entries import FINITE
from unforgotten.audit.kernel.rules import exact_thresholds, float_order
from unforgotten.audit.kernel.slots import (
    BINS,
    CODES,
    FIRST_BIN,
    FRACTION,
    INVERSE,
    LIMITS,
    ORIGIN,
    REACH,
    STAYED,
    STEPS,
    SURE,
    SURELY_FROM,
    SURELY_TO,
)
from unforgotten.audit.kernel.vector_rules import is_in_registers, lattice_rule, vector_rule
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.rounding import ROUNDINGS
from unforgotten.theory.geometry.cells import cells
from unforgotten.verification.chance import rng_for
from unforgotten.verification.domains import strategies as domain

Array = NDArray[Any]
QUOTIENTS = [
    name
    for name in domain.ALL_FORMAT_NAMES
    if format_named(name).arithmetic == "divide"
    and is_in_registers(format_named(name))
    and vector_rule(format_named(name)).tables is not None
]


@pytest.mark.parametrize(
    "name", [n for n in domain.ALL_FORMAT_NAMES if format_named(n).zero not in ("whole", "float")]
)  # with such a zero point the codes depend on it too
def test_exact_thresholds__divide_the_codes(name: str) -> None:
    """The largest ratio of each code, and the next float32, on the two sides of a threshold."""
    fmt = format_named(name)
    thresholds = exact_thresholds(fmt)
    seen = np.isfinite(thresholds) & (np.abs(thresholds) < np.finfo(np.float32).max)
    t, k = thresholds[seen], np.flatnonzero(seen)
    code = [ROUNDINGS[fmt.rounding](x, np.zeros_like(x), fmt) for x in (t, np.nextafter(t, np.float32(np.inf)))]
    assert (code[0] <= k).all()
    assert (code[1] > k).all()


@pytest.mark.parametrize(
    "name",
    [n for n in domain.ALL_FORMAT_NAMES if is_in_registers(f := format_named(n)) and vector_rule(f).tables is not None],
)
def test_vector_rule__finds_the_code_by_one_threshold_of_a_bucket(name: str) -> None:
    """By the very operations of the kernel: a fused multiply-add is the float64 product, rounded once."""
    fmt = format_named(name)
    rule = vector_rule(fmt)
    t = exact_thresholds(fmt)
    reach, steps = rule.constants[REACH], rule.constants[STEPS]
    rough = np.concatenate(
        [t, np.nextafter(t, np.float32(np.inf)), np.linspace(-2 * reach, 2 * reach, 9999, dtype=np.float32)]
    )
    place = np.clip(rough, -reach, reach).astype(np.float64) * steps
    bucket = np.rint(place).astype(int) & 31
    assert rule.tables is not None
    codes = rule.tables[CODES : CODES + 2].reshape(-1).view(np.int32)
    limits = rule.tables[LIMITS : LIMITS + 2].reshape(-1)
    found = codes[bucket] + (rough > limits[bucket])
    for threshold in () if rule.extra_thresholds is None else rule.extra_thresholds:
        found += rough > threshold
    assert np.array_equal(found, np.searchsorted(t, rough, side="left"))


def test_float_order__is_the_order_of_floats() -> None:
    rng = rng_for("float order")
    x = rng.integers(0, 2**32, 4096, dtype=np.uint32).view(np.float32)
    x = np.concatenate([x[np.isfinite(x)], np.array([0.0, -0.0, 1e-45, -1e-45], np.float32)])
    order = float_order(x)
    assert np.array_equal(np.sign(order[:, None] - order), np.sign(np.subtract.outer(x.astype(np.float64), x)))


@pytest.mark.parametrize("name", ["mxfp4-b32", "nvfp4", "int4-g64"])
def test_lattice_rule__finds_the_bin_of_every_bfloat16(name: str) -> None:
    """With fractions: where a ratio of 8 bits is in its cell, and that the fused sum is what float64 says."""
    fmt = format_named(name)
    rule, cell = lattice_rule(fmt), cells(fmt)
    assert rule is not None
    assert rule.tables is not None
    assert rule.crowded_below is not None
    sizes = np.arange(FINITE, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float64)
    ratios = np.append(sizes, -sizes)
    code = np.searchsorted(exact_thresholds(fmt), ratios, side="left")
    asked = (code > 0) & (code < len(cell.lower) - 1) & (np.abs(ratios) >= rule.crowded_below[0])
    assert np.abs(ratios[asked]).min() < 1e-5, "few are left to float64"
    lower, width = cell.lower.tolist(), cell.width.tolist()
    for ratio, k in zip(ratios[asked].tolist(), code[asked].tolist(), strict=True):
        inverse, origin = (float(rule.tables[row, k]) for row in (INVERSE, ORIGIN))
        fused = ratio * inverse + origin
        assert Fraction(ratio) * Fraction(inverse) + Fraction(origin) == Fraction(fused)
        found = min(int(np.float32(fused)) >> FRACTION, STAYED - 1)
        place = (Fraction(ratio) - Fraction(lower[k])) / Fraction(width[k])
        assert found == FIRST_BIN + min(math.floor(place * BINS), BINS - 1)


@pytest.mark.parametrize("name", QUOTIENTS)
def test_vector_rule__is_sure_of_quotients_that_are_clear_of_thresholds(name: str) -> None:
    """The ends of what a code has for sure, moved by all that a product by a reciprocal may be off."""
    fmt = format_named(name)
    tables, thresholds = vector_rule(fmt).tables, exact_thresholds(fmt)
    assert tables is not None
    for code in range(len(fmt.levels)):
        least = np.nextafter(tables[SURELY_FROM, code], np.float32(np.inf))
        for end in (least, tables[SURELY_TO, code]):
            if np.isfinite(end):
                off = abs(Fraction(float(end))) * Fraction(1, 2**23)
                for quotient in (Fraction(float(end)) - off, Fraction(float(end)) + off):
                    assert sum(quotient > Fraction(float(t)) for t in thresholds) == code


@pytest.mark.parametrize("name", QUOTIENTS)
def test_vector_rule__is_sure_of_codes_away_from_the_one_threshold(name: str) -> None:
    """Products that are as far off as they may be have the code of the quotient, or are not sure; few are not."""
    fmt = format_named(name)
    rule, t = vector_rule(fmt), exact_thresholds(fmt)
    assert rule.tables is not None
    reach, steps, sure = (rule.constants[k] for k in (REACH, STEPS, SURE))
    around = np.outer(t, 1 + np.linspace(-1e-6, 1e-6, 201)).reshape(-1)
    quotient = np.append(np.linspace(-1.5 * reach, 1.5 * reach, 20_001), around)
    code = np.searchsorted(t, quotient.astype(np.float32), side="left")
    for off in (-(2.0**-23), 0, 2.0**-23):
        rough = (quotient * (1 + off)).astype(np.float32)
        bucket = np.rint(np.clip(rough, -reach, reach).astype(np.float64) * steps).astype(int) & 31
        limit = rule.tables[LIMITS : LIMITS + 2].reshape(-1)[bucket]
        surely = np.abs(rough - limit) > sure
        assert np.array_equal(np.searchsorted(t, rough[surely], side="left"), code[surely])
        assert surely[: -len(around)].mean() > 0.999


@given(st.integers(-60, 100), st.integers(1, 2**24 - 1), st.integers(1, 2**24 - 1))
def test_product_by_a_reciprocal__is_the_float32_quotient(e: int, x: int, y: int) -> None:
    """Of normal numbers: what `vector_rules` says of the float64 reciprocal of a float32 number, and of the float32 one."""
    a, b = np.float32(x * 2.0 ** (e - 24)), np.float32(y * 2.0**-12)
    product = np.float64(a) * (1 / np.float64(b))
    assert np.float32(product) == a / b
    rough = a * np.float32(1 / np.float64(b))
    assert abs(Fraction(float(rough)) * Fraction(float(b)) / Fraction(float(a)) - 1) < Fraction(1, 2**22)


@njit
def magnitudes_of(x: Array, y: Array, start: int, stop: int, groups: int, e: Array, f: Array, top: Array) -> Any:
    find: Any = block_magnitudes
    return find(x, y, start, stop, groups, 7, e, f, top)


@settings(deadline=None)  # the first example compiles
@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_block_magnitudes__are_those_of_numpy(groups: int, count: int, start: int, seed: int) -> None:
    rng = rng_for("block sizes", seed)
    stop = start + count
    x, y = rng.integers(0, 2**16, (2, stop, 16 * groups), dtype=np.uint16)
    entries: Array = np.zeros((2, stop), np.uint32)
    absmax = np.zeros(stop, np.float32)
    flat = x.reshape(-1), y.reshape(-1)
    tops = magnitudes_of(*flat, start, stop, groups, entries[0], entries[1], absmax)
    before, after = ((z & 0x7FFF).max(axis=1).astype(np.uint32) for z in (x, y))
    assert tops == (before[start:].max(), after[start:].max())
    assert np.array_equal(entries[:, start:], [before[start:], after[start:] + 7])
    assert np.array_equal(absmax.view(np.uint32)[start:], before[start:] << 16)
    assert not entries[:, :start].any()
