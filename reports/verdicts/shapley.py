"""Shares of an outcome that belong to the factors of a full factorial design, by Shapley's value.

>>> shapley({frozenset(): 0.0, frozenset("a"): 0.0, frozenset("b"): 0.0, frozenset("ab"): 1.0})
{'a': 0.5, 'b': 0.5}
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from math import factorial


def shapley(values: Mapping[frozenset[str], float]) -> dict[str, float]:
    """Return what each factor adds to the outcome, averaged over all orders in which the factors can be switched on.

    The shares sum to the outcome with all factors less that with none. What only two factors together bring about is shared
    evenly between them.

    Args:
        values: outcome by the set of factors that are on; every subset of the factors must be there.

    Raises:
        ValueError: a subset is missing.

    Source: Shapley 1953, A value for n-person games.
    """
    factors = sorted(frozenset().union(*values))
    count = len(factors)
    for size in range(count + 1):
        for subset in combinations(factors, size):
            if frozenset(subset) not in values:
                raise ValueError(f"values must have every subset of {', '.join(factors)}, got none for {subset}")
    shares = {}
    for factor in factors:
        others = [one for one in factors if one != factor]
        shares[factor] = sum(
            factorial(size)
            * factorial(count - size - 1)
            / factorial(count)
            * (values[frozenset({*subset, factor})] - values[frozenset(subset)])
            for size in range(count)
            for subset in combinations(others, size)
        )
    return shares
