from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from itertools import permutations
from typing import Any

import hypothesis.strategies as st
from hypothesis import given

from unforgotten.theory.models.decomposition import lost_effect
from unforgotten.verification.oracles import U64

NAMES = ("w", "w_new", "q", "q_new", "w_plus_d", "q_plus_delta")
rationals = st.fractions(min_value=-100, max_value=100, max_denominator=1000)
any_metrics = st.fixed_dictionaries({name: rationals for name in NAMES})
floats = st.floats(-1e6, 1e6)


def exact(values: Mapping[str, Any]) -> tuple[Fraction, Fraction, Fraction]:
    """The function itself in rationals: it uses +, - and / only, so it is exact there."""
    return lost_effect(**values)  # type: ignore[return-value]


def effect(f: Mapping[str, Fraction], *, gated: bool, shifted: bool) -> Fraction:
    """The effect of the update with either replacement made."""
    before = f["q"] if shifted else f["w"]
    after = {
        (False, False): f["w_new"],
        (True, False): f["w_plus_d"],
        (False, True): f["q_plus_delta"],
        (True, True): f["q_new"],
    }[gated, shifted]
    return after - before


def shapley(f: Mapping[str, Fraction]) -> dict[str, Fraction]:
    """The Shapley value by its definition: the mean over orders of what a player takes away."""
    lost = {"gated": Fraction(0), "shifted": Fraction(0)}
    for order in permutations(lost):
        on = {"gated": False, "shifted": False}
        for player in order:
            before = effect(f, **on)
            on[player] = True
            lost[player] += (before - effect(f, **on)) / 2
    return lost


@given(any_metrics)
def test_lost_effect__is_the_shapley_value_exactly(f: dict[str, Fraction]) -> None:
    _, gating, base_shift = exact(f)
    assert {"gated": gating, "shifted": base_shift} == shapley(f)


@given(any_metrics)
def test_lost_effect__has_no_remainder(f: dict[str, Fraction]) -> None:
    total, gating, base_shift = exact(f)
    assert total == gating + base_shift
    assert total == (f["w_new"] - f["w"]) - (f["q_new"] - f["q"])


@given(st.fixed_dictionaries({name: floats for name in NAMES}))
def test_lost_effect__rounds_only_its_sums(f: dict[str, float]) -> None:
    total, gating, base_shift = lost_effect(**f)
    largest = max(abs(x) for x in f.values())
    # Four differences (|.| <= 2 F, u each), pairs (4 F), their sums (8 F), halved exactly: per term below
    # (4 * 2 + 2 * 4 + 8) / 2 = 12 u F; three terms and one more sum of 8 F: 44 u F, second order below 1 u F.
    slack = 45 * U64 * largest
    assert abs(total - (gating + base_shift)) <= slack


@given(any_metrics)
def test_lost_effect__has_no_gating_where_the_whole_update_survives(f: dict[str, Fraction]) -> None:
    whole = {**f, "w_plus_d": f["w_new"], "q_plus_delta": f["q_new"]}
    assert exact(whole)[1] == 0


@given(any_metrics)
def test_lost_effect__has_no_base_shift_on_an_unmoved_base(f: dict[str, Fraction]) -> None:
    same = {**f, "q": f["w"], "q_new": f["w_plus_d"], "q_plus_delta": f["w_new"]}
    assert exact(same)[2] == 0


@given(any_metrics, any_metrics, rationals)
def test_lost_effect__is_linear_in_the_metric(f: dict[str, Fraction], g: dict[str, Fraction], c: Fraction) -> None:
    mixed = {name: f[name] + c * g[name] for name in NAMES}
    expected = tuple(a + c * b for a, b in zip(exact(f), exact(g), strict=True))
    assert tuple(exact(mixed)) == expected


@given(any_metrics, rationals)
def test_lost_effect__ignores_a_constant(f: dict[str, Fraction], c: Fraction) -> None:
    assert exact({name: x + c for name, x in f.items()}) == exact(f)


Vector = tuple[Fraction, Fraction]
vectors = st.tuples(rationals, rationals)


def metrics_of(
    model: Callable[[Vector], Fraction], w: Vector, delta: Vector, q: Vector, d: Vector
) -> dict[str, Fraction]:
    def at(base: Vector, update: Vector) -> Fraction:
        return model((base[0] + update[0], base[1] + update[1]))

    zero = (Fraction(0), Fraction(0))
    return {
        "w": at(w, zero),
        "w_new": at(w, delta),
        "q": at(q, zero),
        "q_new": at(q, d),
        "w_plus_d": at(w, d),
        "q_plus_delta": at(q, delta),
    }


@given(vectors, vectors, vectors, vectors)
def test_lost_effect__is_gating_alone_for_a_linear_model(w: Vector, delta: Vector, q: Vector, d: Vector) -> None:
    """The effect of an update on a linear model does not depend on the base: the lost part is F(delta - D)."""
    total, gating, base_shift = exact(metrics_of(lambda x: 3 * x[0] - 2 * x[1], w, delta, q, d))
    assert base_shift == 0
    assert total == gating == 3 * (delta[0] - d[0]) - 2 * (delta[1] - d[1])


@given(vectors, vectors, vectors, vectors)
def test_lost_effect__splits_a_quadratic_model_in_closed_form(w: Vector, delta: Vector, q: Vector, d: Vector) -> None:
    """For F = x y the base shift is <w - q, H (delta + D)/2> with H the swap: the mean update meets the moved base."""
    _, _, base_shift = exact(metrics_of(lambda x: x[0] * x[1], w, delta, q, d))
    mean = ((delta[0] + d[0]) / 2, (delta[1] + d[1]) / 2)
    assert base_shift == (w[0] - q[0]) * mean[1] + (w[1] - q[1]) * mean[0]
