"""The interval of a counted share against the binomial law that it inverts."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given
from scipy.stats import binom

from unforgotten.records.shares import clopper_pearson


@given(st.integers(1, 60), st.floats(1e-6, 0.4), st.data())
def test_clopper_pearson__has_its_ends_where_binomial_tails_are(count: int, tail: float, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, count))
    low, high = clopper_pearson(hits, count, tail)
    assert 0 <= low <= hits / count <= high <= 1
    if hits:
        assert binom.sf(hits - 1, count, low) == pytest.approx(tail)
    if hits < count:
        assert binom.cdf(hits, count, high) == pytest.approx(tail)


def test_clopper_pearson__of_no_trial_says_nothing() -> None:
    assert clopper_pearson(0, 0, 0.025) == (0, 1)


@pytest.mark.parametrize(("hits", "count", "tail"), [(2, 1, 0.1), (-1, 1, 0.1), (0, 1, 0.0), (0, 1, 1.0)])
def test_clopper_pearson__refuses_what_is_no_share(hits: int, count: int, tail: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        clopper_pearson(hits, count, tail)
