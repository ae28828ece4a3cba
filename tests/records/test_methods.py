"""Methods stand under the loss that they forget with, whatever settings a run gives them."""

from __future__ import annotations

import pytest

from unforgotten.records.methods import forget_term


@pytest.mark.parametrize(
    ("method", "term"),
    [("GA_GDR", "GA"), ("GA_GDR+lr1e-5", "GA"), ("NPO+lr1e-5+b", "NPO"), ("SimNPO_GDR+lr1e-5", None), (None, None)],
    ids=str,
)
def test_a_variant_stands_where_its_method_does(method: str | None, term: str | None) -> None:
    assert forget_term(method) == term
