"""The oracle is tested too: against numpy's float32 and float16, which round in hardware."""

from __future__ import annotations

from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from unforgotten.verification.oracles import MAX32, binade, float32, nearest, round_half_even

doubles = st.floats(-(2.0**120), 2.0**120)


@given(doubles)
def test_float32__is_the_cast_of_numpy(x: float) -> None:
    assert float32(Fraction(x)) == Fraction(float(np.float32(x)))


@given(st.floats(-65000, 65000))
def test_nearest__is_the_cast_to_float16(x: float) -> None:
    assert nearest(Fraction(x), 11, -24) == Fraction(float(np.float16(x)))


@given(st.integers(-(2**40), 2**40), st.integers(1, 2**12))
def test_round_half_even__is_the_rule_of_python(a: int, b: int) -> None:
    assert round_half_even(Fraction(a, b)) == round(Fraction(a, b))


@given(st.integers(-(2**40), 2**40).filter(bool), st.integers(1, 2**40))
def test_binade__brackets(a: int, b: int) -> None:
    x = Fraction(a, b)
    assert Fraction(2) ** binade(x) <= abs(x) < Fraction(2) ** (binade(x) + 1)


def test_float32__ends_where_float32_ends() -> None:
    half_ulp = Fraction(2) ** 103
    assert float32(MAX32 + half_ulp - 1) == MAX32
    assert float32(MAX32 + half_ulp) is None
