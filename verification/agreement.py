"""When two measurements of one pair agree: counts to the last one, sums to the rounding of their order."""

from __future__ import annotations

import math
from dataclasses import fields

from unforgotten.theory.laws.update import Survival

SUMS = ("expected_flips", "flips_variance", "delta_sq", "surviving_sq", "dot")
ORDER_SLACK = 1e-12
"""Relative to the sum of magnitudes. In float64, n terms in any order are within n 2^-53 of it: 1e-12 for 9,000 terms
one after another, and for 2^20 in blocks of 512 and correctly rounded sums of those (their own rounding to 2^-53).
A term p is |v' - v| times a rounded reciprocal, 3 roundings; p (1 - p) cancels, but no more than the p in it."""


def assert_agree(found: Survival, expected: Survival) -> None:
    """Fail unless every count is equal and every sum within ORDER_SLACK of the magnitudes it adds."""
    magnitudes = {
        "expected_flips": expected.expected_flips,
        "flips_variance": expected.expected_flips,
        "delta_sq": expected.delta_sq,
        "surviving_sq": expected.surviving_sq,
        "dot": math.sqrt(expected.delta_sq) * math.sqrt(expected.surviving_sq),
    }
    for field in fields(Survival):
        one, two = getattr(found, field.name), getattr(expected, field.name)
        if field.name in SUMS:
            slack = ORDER_SLACK * magnitudes[field.name]
            assert abs(one - two) <= slack, f"{field.name}: {one!r} and {two!r}"
        else:
            assert one == two, f"{field.name}: {one!r} and {two!r}"
