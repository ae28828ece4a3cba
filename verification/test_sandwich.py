# pyright: reportOperatorIssue=false
# Arrays of fractions have no declared type.
from __future__ import annotations

from fractions import Fraction
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import round_trip
from unforgotten.theory.geometry.sandwich import displacement_norm_upper_bound, displacement_sandwich
from unforgotten.verification.domains.strategies import FORMAT_NAMES, Pair, pairs
from unforgotten.verification.oracles import U64

KINDS = ("plain", "bfloat16", "float16", "ties", "outlier", "zero block")
rows = st.integers(1, 6).flatmap(lambda n: st.tuples(*[hnp.arrays(np.float64, n, elements=st.floats(-1e3, 1e3))] * 3))


def parts(pair: Pair) -> list[NDArray[Any]]:
    """delta, the two errors and D, as exact rationals."""
    exact = np.vectorize(Fraction, otypes=[object])
    w, w_new = exact(pair.w.astype(float)), exact(pair.w_new.astype(float))
    q, q_new = (exact(round_trip(x, pair.fmt).astype(float)) for x in (pair.w, pair.w_new))
    return [w_new - w, q - w, q_new - w_new, q_new - q]


@given(pairs(names=FORMAT_NAMES, kinds=KINDS))
def test_displacement_sandwich__holds_for_every_kernel(pair: Pair) -> None:
    """Adaptive grids. delta and the errors are rationals rounded to double; each costs u of its size at most."""
    delta, error, error_new, d = parts(pair)
    bounds = displacement_sandwich(*(x.astype(np.float64) for x in (delta, error, error_new)))
    slack = Fraction(U64) * (abs(delta) + abs(error) + abs(error_new))
    exact = np.vectorize(Fraction, otypes=[object])
    assert (abs(d) <= exact(bounds.upper) + slack).all()
    assert (abs(d) >= exact(bounds.lower) - slack).all()


@given(rows)
def test_displacement_sandwich__is_the_triangle_inequality_rounded_outward(row: tuple[NDArray[Any], ...]) -> None:
    bounds = displacement_sandwich(*row)
    for i in range(len(row[0])):
        size, noise, noise_new = (abs(Fraction(x[i])) for x in row)
        total = size + noise + noise_new
        slack = 16 * Fraction(U64) * total + Fraction(2) ** -1070
        assert total <= Fraction(bounds.upper[i]) <= total + slack
        least = max(size - noise - noise_new, Fraction(0))
        assert least - slack <= Fraction(bounds.lower[i]) <= least


def test_displacement_sandwich__both_ends_are_attained() -> None:
    """int4 by hand, step 1: 0.5-eps and 0.5+eps flip by a whole step; 1.25 -> 1.75 too; 0.75 -> 1.25 loses all."""
    fmt = format_named("int4-tensor")
    top = 7.0
    for a, b, side in ((0.75, 1.25, "lower"), (0.25, 0.75, "upper")):
        w, w_new = (np.array([[x, top]], np.float32) for x in (a, b))
        q, q_new = round_trip(w, fmt), round_trip(w_new, fmt)
        d = float(abs(q_new - q)[0, 0])
        bounds = displacement_sandwich((w_new - w)[0, :1], (q - w)[0, :1], (q_new - w_new)[0, :1])
        end = float(getattr(bounds, side)[0])
        assert abs(d - end) <= 16 * U64


def test_displacement_sandwich__an_update_beyond_a_step_cannot_vanish() -> None:
    bounds = displacement_sandwich(np.array([1.25]), np.array([0.5]), np.array([0.5]))
    assert 0.25 - 16 * U64 * 2.25 <= bounds.lower[0] <= 0.25


def test_displacement_sandwich__refuses_two_shapes() -> None:
    with pytest.raises(ValueError, match="one shape"):
        displacement_sandwich(np.ones(2), np.ones(2), np.ones(3))


@given(pairs(names=("int4-g8", "nf4-b8", "int4-g8-asym"), kinds=KINDS))
def test_displacement_norm_upper_bound__bounds_the_whole_tensor(pair: Pair) -> None:
    delta, error, error_new, d = parts(pair)
    bound = displacement_norm_upper_bound(*(x.astype(np.float64) for x in (delta, error, error_new)))
    # the three were rounded to double; each norm by u of its size at most
    assert np.sum(d * d) <= Fraction(bound * (1 + 4 * U64)) ** 2
