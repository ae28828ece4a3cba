"""What bounds add for roundings is what their comments count: seen where the arithmetic itself rounds nothing."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from unforgotten.theory.formats.names import format_named
from unforgotten.theory.geometry.drift import value_rounding_upper_bound
from unforgotten.theory.laws.wash import poisson_binomial_tails
from unforgotten.theory.models.response import response_variance_upper_bound
from unforgotten.verification.oracles import ETA32, U32, U64


def test_response_variance_upper_bound__pays_for_terms_that_underflow() -> None:
    """Eight terms of 2^-1076 are 0 in float64; their sum is twice the smallest number."""
    bound = response_variance_upper_bound(np.full(8, 2.0**-537), np.ones(8), 1.0)
    assert Fraction(bound) >= 8 * Fraction(2) ** -1076


@pytest.mark.parametrize("n", [4, 40])
@pytest.mark.parametrize("count", [1, 2])
def test_poisson_binomial_tails__pay_for_four_roundings_a_weight_and_a_sum(n: int, count: int) -> None:
    """At p = 1/2 and n = 4 the law is exact in float64, and for n = 40 nearly; the tails must lie above it all the same."""
    law = [Fraction(1, 2**n)]
    for k in range(n):
        law.append(law[-1] * (n - k) / (k + 1))
    lower, upper = poisson_binomial_tails(count, np.full(n, 0.5))
    exact = sum(law[: count + 1]), sum(law[count:])
    for found, true in zip((lower, upper), exact, strict=True):
        allowance = (Fraction(found) / true - 1) / Fraction(U64)
        assert 4 * n + count + 2 <= allowance + 1  # the slack itself is rounded
        assert allowance <= 4 * n + count + 32


def test_value_rounding_upper_bound__is_what_its_statement_counts() -> None:
    """4 u at 1, where the smallest numbers are lost; 4 + 7 of them at 0, as the levels of INT4 reach 7."""
    bound = value_rounding_upper_bound(np.array([1.0, 0.0]), format_named("int4-row"))
    assert bound.tolist() == [4 * U32, 11 * ETA32]
