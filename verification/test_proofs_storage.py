"""The exhaustive proofs of T4 can fail, and their arithmetic is that of the libraries."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from unforgotten.theory.geometry.dead_zone import frozen_exponent
from unforgotten.theory.proofs.storage import (
    check,
    check_float32_sum,
    dead_zone_rule,
    half_ulp_rule,
    rounded_sum,
    saturation_rule,
    storage,
)

NARROW = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("off", [-1, 1])
def test_dead_zone_rule__refutes_another_edge(dtype: str, off: int) -> None:
    s = storage(dtype)
    with pytest.raises(AssertionError, match=r"moves|frozen|exception"):
        check(s, dead_zone_rule(s, lambda eta, name: frozen_exponent(eta, name) + off))


@pytest.mark.parametrize("dtype", NARROW)
def test_half_ulp_rule__refutes_one_ulp_for_both_sides(dtype: str) -> None:
    """T4's "|eta| < ulp(w)/2 returns w" is false toward 0 from a power of two, where the gap is half an ulp."""
    s = storage(dtype)
    with pytest.raises(AssertionError, match="half an ulp"):
        check(s, half_ulp_rule(s, one_ulp_for_both_sides=True))


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_saturation_rule__refutes_that_every_number_saturates_alike(dtype: str) -> None:
    """With the second largest number taken for the largest, a weight beyond it comes back and has moved."""
    s = storage(dtype)
    lower = replace(s, largest=float(np.sort(np.unique(s.finite))[-2]))
    with pytest.raises(AssertionError, match="saturation"):
        check(lower, saturation_rule(lower))


def test_half_ulp_rule__fails_as_the_library_shows() -> None:
    w, eta, ulp = np.float16(1), np.float16(-0.375 * 2**-10), 2.0**-10
    assert abs(float(eta)) < ulp / 2
    assert np.float16(w + eta) != w


@pytest.mark.parametrize("dtype", NARROW)
def test_check_float32_sum__refutes_a_smaller_margin(dtype: str) -> None:
    with pytest.raises(AssertionError, match="eta="):
        check_float32_sum(dtype, units=0.5)


@pytest.mark.parametrize("dtype", NARROW)
def test_rounded_sum__is_the_cast_of_the_library(dtype: str) -> None:
    """Every value plus every update whose sum float32 holds exactly: there the library rounds once."""
    s = storage(dtype)
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    compared = 0
    for k in range(s.smallest_step - 1, 5):
        for eta in (2.0**k, 0.75 * 2.0**k, -1.25 * 2.0**k):
            total = s.finite + eta
            own = rounded_sum(s.finite, eta, s.significant_bits, s.smallest_step)
            keep = (total.astype(np.float32) == total) & (np.abs(own) <= s.largest)
            cast = total[keep].astype(np.float32).astype(kind).astype(np.float64)
            assert np.array_equal(cast, own[keep])
            compared += int(keep.sum())
    assert compared > s.finite.size


def test_storage__has_the_values_that_the_formats_are_known_for() -> None:
    e4m3, e5m2 = storage("float8_e4m3fn"), storage("float8_e5m2")
    assert (e4m3.largest, e4m3.smallest_step, e4m3.finite.size) == (448.0, -9, 254)
    assert (e5m2.largest, e5m2.smallest_step, e5m2.finite.size) == (57344.0, -16, 248)
    assert storage("bfloat16").finite.size == 2**16 - 2 * 128
    assert storage("float16").finite.size == 2**16 - 2 * 1024


def test_float8__overflows_to_nan_or_inf() -> None:
    """What "beyond the largest number" means without saturation: e4m3fn has no inf. Ties stay at the even 448."""
    beyond = np.array([464.0, 465.0, 1e6], np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        e4m3 = beyond.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        e5m2 = np.array([61440.0], np.float32).astype(ml_dtypes.float8_e5m2).astype(np.float32)
    assert e4m3[0] == 448
    assert np.isnan(e4m3[1:]).all()
    assert np.isinf(e5m2).all()
