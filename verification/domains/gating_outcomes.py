"""Every outcome of gating for a few weights, with its probability, in rationals: what T18 to T20 are compared with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
from numpy.typing import NDArray


class Pair(NamedTuple):
    """A gradient, an update and the steps of a few weights, (n,) each, that float64 and Fraction hold alike."""

    gradient: NDArray[Any]
    delta: NDArray[Any]
    step: NDArray[Any]

    def exact(self) -> list[list[Fraction]]:
        """Return the three as lists of fractions."""
        return [[Fraction(x) for x in row.tolist()] for row in self]


def error_outcomes(pair: Pair) -> Iterator[tuple[Fraction, list[Fraction]]]:
    """Yield (probability, D - delta) for uniform and independent places in unclipped cells."""
    _, delta, step = pair.exact()
    rows = []
    for d, s in zip(delta, step, strict=True):
        phase = abs(d) / s % 1
        sign = 1 if d >= 0 else -1
        rows.append(((1 - phase, -sign * phase * s), (phase, sign * (1 - phase) * s)))
    for choice in product(*rows):
        yield math.prod((p for p, _ in choice), start=Fraction(1)), [e for _, e in choice]


@st.composite
def gated_pairs(draw: st.DrawFn, *, most: int = 4) -> Pair:
    """Draw a pair of 1 to `most` weights whose effect g·delta is not 0. Shrinks to one weight."""
    n = draw(st.integers(1, most))
    sizes = st.integers(1, 24).map(lambda k: k / 8)
    signs = st.sampled_from([1.0, -1.0])
    gradient, delta = (np.array(draw(st.lists(sizes, min_size=n, max_size=n))) for _ in range(2))
    both = np.array(draw(st.lists(signs, min_size=n, max_size=n)))
    against = np.array(draw(st.lists(signs, min_size=n, max_size=n)))
    step = np.array(draw(st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0]), min_size=n, max_size=n)))
    if gradient @ (delta * against) == 0:
        against = np.ones(n)
    return Pair(gradient * both, delta * both * against, step)
