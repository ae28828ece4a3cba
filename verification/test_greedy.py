from __future__ import annotations

from fractions import Fraction
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from unforgotten.theory.models.greedy import (
    certified_prefix,
    certified_tokens,
    greedy_metric_change_upper_bound,
    top_two_gap,
)
from unforgotten.verification.chance import rng_for
from unforgotten.verification.oracles import U64

logit_rows = st.integers(2, 8).flatmap(
    lambda n: hnp.arrays(np.float64, n, elements=st.integers(-40, 40).map(lambda k: k / 8))
)
changes = st.integers(0, 40).map(lambda k: k / 16)


@given(logit_rows)
def test_top_two_gap__is_the_sorted_difference(logits: NDArray[Any]) -> None:
    top, second = sorted((Fraction(x) for x in logits.tolist()), reverse=True)[:2]
    assert Fraction(float(top_two_gap(logits))) == top - second  # eighths: exact


@given(logit_rows, changes, st.integers(0, 2**32))
def test_certified_tokens__keep_their_arg_max(logits: NDArray[Any], change: float, seed: int) -> None:
    """Any change within the bound, and the worst one."""
    if not certified_tokens(logits, change):
        return
    best = int(np.argmax(logits))
    random = change * rng_for("logits", seed, change).choice([-1, 0, 1], size=logits.shape)
    worst = np.where(np.arange(logits.size) == best, -change, change)
    for d in (random, worst):
        assert int(np.argmax(logits + d)) == best


@given(logit_rows, changes)
def test_certified_tokens__are_all_that_can_be(logits: NDArray[Any], change: float) -> None:
    """Sharp: where a token is not certified, a change within the bound reaches a tie, or the gap is its rounding away."""
    best = int(np.argmax(logits))
    worst = logits + np.where(np.arange(logits.size) == best, -change, change)
    safe = bool(worst[best] > np.delete(worst, best).max())
    certain = bool(certified_tokens(logits, change))
    # multiples of 1/16 below 8: a gap beyond 2 c is so by 1/16, more than the rounding of 2 u of 10
    assert certain == safe


def test_certified_tokens__leave_two_roundings_of_the_gap_uncertified() -> None:
    """A gap of 1 less two roundings of it, the difference and the product, is what must exceed 2 c."""
    logits, least = np.array([1.0, 0.0]), 1 - 2 * U64
    assert not certified_tokens(logits, least / 2)
    assert certified_tokens(logits, np.nextafter(least, 0) / 2)


@given(st.integers(2, 12), st.integers(0, 2**32), st.floats(-5, 5))
def test_certified_tokens__half_the_spread_serves_and_is_no_larger(n: int, seed: int, shift: float) -> None:
    rng = rng_for("spread", n, seed)
    logits, d = rng.normal(0, 3, n), rng.normal(0, 0.5, n) + shift
    half = (d.max() - d.min()) / 2
    assert half <= np.abs(d).max()
    # logits + d is rounded at a size below 32; half twice at a size below 16
    if certified_tokens(logits, half + 64 * U64):
        assert np.argmax(logits + d) == np.argmax(logits)


def test_certified_tokens__leave_a_tie_open() -> None:
    assert not certified_tokens(np.array([1.0, 1.0, 0.0]), 0.0)
    assert not certified_tokens(np.array([3.0, 1.0]), 1.0)
    assert certified_tokens(np.array([3.0, 1.0]), 0.875)


def test_certified_tokens__take_one_bound_a_step() -> None:
    logits = np.array([[3.0, 1.0], [3.0, 1.0]])
    assert certified_tokens(logits, np.array([0.5, 1.5])).tolist() == [True, False]


tables = st.tuples(st.integers(1, 5), st.integers(0, 6)).flatmap(lambda shape: hnp.arrays(np.bool_, shape))


@given(tables)
def test_certified_prefix__counts_to_the_first_gap(table: NDArray[Any]) -> None:
    expected = [row.index(False) if False in row else len(row) for row in table.tolist()]
    assert certified_prefix(table).tolist() == expected


class Toy:
    """A language model of `vocabulary` tokens: logits from a seed and the whole prefix."""

    def __init__(self, seed: int, *, change: float, moved: bool) -> None:
        self.seed, self.change, self.moved = seed, change, moved

    def logits(self, prefix: tuple[int, ...]) -> NDArray[Any]:
        base = rng_for("toy", self.seed, prefix).normal(0, 1, 5)
        if not self.moved:
            return base
        noise = rng_for("toy change", self.seed, prefix).uniform(-1, 1, 5)
        return np.asarray(base + self.change * noise)

    def greedy(self, tokens: int) -> tuple[int, ...]:
        out: tuple[int, ...] = ()
        for _ in range(tokens):
            out = (*out, int(np.argmax(self.logits(out))))
        return out


def certificate(seed: int, tokens: int, change: float) -> tuple[NDArray[Any], Toy, Toy]:
    first, second = (Toy(seed, change=change, moved=m) for m in (False, True))
    answer = first.greedy(tokens)
    logits = np.stack([first.logits(answer[:i]) for i in range(tokens)])
    return certified_tokens(logits, change * (1 + 8 * U64)), first, second


@given(st.integers(0, 2**32), st.floats(0, 0.3))
def test_certified_prefix__is_decoded_alike(seed: int, change: float) -> None:
    """Two decoders that run freely, each on its own words: they agree up to the first token that is not certified."""
    certified, first, second = certificate(seed, 8, change)
    n = int(certified_prefix(certified[None])[0])
    assert first.greedy(8)[:n] == second.greedy(8)[:n]


@given(st.lists(st.integers(0, 2**32), min_size=1, max_size=6), st.floats(0, 0.3))
def test_greedy_metric_change_upper_bound__holds_for_two_decoders(seeds: list[int], change: float) -> None:
    """The metric: the share of answers whose last token is 0, a score in {0, 1}."""
    runs = [certificate(seed, 5, change) for seed in seeds]
    bound = greedy_metric_change_upper_bound(np.stack([r[0] for r in runs]))
    metric = [np.mean([m.greedy(5)[-1] == 0 for m in models]) for models in zip(*(r[1:] for r in runs), strict=True)]
    assert abs(metric[0] - metric[1]) <= bound + 2 * U64


def test_greedy_metric_change_upper_bound__share_of_tokens_is_not_enough() -> None:
    """The bound by the share of certified tokens is false: one open token of ten, at the start, moves all of it."""
    certified = np.array([[False] + [True] * 9])
    answers = [(0,) * 10, (1,) * 10]  # a second model that copies its first token
    score = [float(np.mean(np.array(a) == 0)) for a in answers]
    share_open = 1 - certified.mean()
    assert abs(score[0] - score[1]) == 1 > share_open
    assert greedy_metric_change_upper_bound(certified) >= 1


@given(tables, st.integers(1, 100))
def test_greedy_metric_change_upper_bound__is_the_share_of_open_answers(table: NDArray[Any], high: int) -> None:
    share = Fraction(sum(not all(row) for row in table.tolist()), len(table))
    bound = Fraction(greedy_metric_change_upper_bound(table, 0, high))
    assert share * high <= bound <= share * high * (1 + 16 * Fraction(U64))


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("logits must have two tokens", lambda: top_two_gap(np.ones(1))),
        ("logits must have two tokens", lambda: top_two_gap(np.array(1.0))),
        ("logits must be finite", lambda: top_two_gap(np.array([1.0, np.inf]))),
        ("change must be non-negative", lambda: certified_tokens(np.ones(2), -1.0)),
        ("change must be non-negative", lambda: certified_tokens(np.ones(2), np.nan)),
        ("certified must be", lambda: certified_prefix(np.ones(3, bool))),
        ("certified must be", lambda: greedy_metric_change_upper_bound(np.ones(3, bool))),
        ("certified must be", lambda: greedy_metric_change_upper_bound(np.ones((0, 3), bool))),
        ("low must be at most", lambda: greedy_metric_change_upper_bound(np.ones((1, 1), bool), 1, 0)),
    ],
)
def test_greedy__refuses(message: str, call: Any) -> None:
    with pytest.raises(ValueError, match=message):
        call()
