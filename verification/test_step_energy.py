"""T5 from the gradients: Jensen's bound of AdamW's step in rationals, by growth and by turning."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given
from numpy.typing import NDArray

from unforgotten.theory.geometry.adamw import adamw_ratio_upper_bound, extremal_gradients
from unforgotten.theory.geometry.step_energy import energy_ratio_upper_bound
from unforgotten.verification.chance import rng_for
from unforgotten.verification.oracles import U64
from unforgotten.verification.recording.tallies import record

ZERO = Fraction(0)
BETAS = [(0.9, 0.999), (0.5, 0.75), (0.0, 0.9), (0.95, 0.9)]


def squares(gradients: list[Fraction], beta1: float, beta2: float) -> tuple[Fraction, Fraction, Fraction]:
    """m^^2, v^ and the mean of the recent squares after the last step, from the definitions: weighted means."""
    t, b1, b2 = len(gradients), Fraction(beta1), Fraction(beta2)
    of_m = [b1 ** (t - 1 - i) for i in range(t)]
    of_v = [b2 ** (t - 1 - i) for i in range(t)]
    m = sum((a * g for a, g in zip(of_m, gradients, strict=True)), ZERO) / sum(of_m)
    recent = sum((a * g * g for a, g in zip(of_m, gradients, strict=True)), ZERO) / sum(of_m)
    v = sum((b * g * g for b, g in zip(of_v, gradients, strict=True)), ZERO) / sum(of_v)
    return m * m, v, recent


@given(st.lists(st.integers(-40, 40), min_size=1, max_size=24), st.sampled_from(BETAS))
@example([0, 3, 0, -3], (0.9, 0.999))
def test_energy_ratio_upper_bound__bounds_every_step(history: list[int], betas: tuple[float, float]) -> None:
    got = energy_ratio_upper_bound(np.array(history, np.float64), *betas)
    for t in range(1, len(history) + 1):
        step_sq, v, recent = squares([Fraction(g) for g in history[:t]], *betas)
        bound = Fraction(float(got[t - 1])) ** 2
        if v == 0:
            assert bound == 0
            continue
        assert step_sq <= recent
        assert recent / v <= bound
        slack = 2 * (3 * t + 2 / (1 - betas[0]) + 2 / (1 - betas[1]) + 16) * U64
        assert bound <= recent / v * (1 + 4 * Fraction(slack)) + Fraction(2) ** -900
        if step_sq:
            ratio = math.sqrt(step_sq / v / bound)
            record("energy_ratio_upper_bound", history[:t], *betas, ratio=ratio)


def test_energy_ratio_upper_bound__is_attained_by_equal_gradients() -> None:
    """And then it is 1, the step itself."""
    got = energy_ratio_upper_bound(np.full((300, 2), -0.125))
    assert (got >= 1).all()
    assert (got <= 1 + 2**14 * U64).all()


def test_energy_ratio_upper_bound__is_above_the_largest_step() -> None:
    for t in (1, 20, 200):
        assert energy_ratio_upper_bound(extremal_gradients(t))[-1] >= adamw_ratio_upper_bound(t) * (1 - 2**13 * U64)


def test_energy_ratio_upper_bound__exceeds_1_by_turning_at_a_constant_norm() -> None:
    """Gradients of norm 1 that turn by a right angle: steps of the weights turned to exceed lr, the norm never grew.

    Turning back and forth at every step does not: each average sees half.
    """
    t = 400
    turn = np.zeros((t, 2))
    turn[:350, 0], turn[350:, 1] = 1.0, 1.0
    m: NDArray[Any] = np.zeros(2)
    v: NDArray[Any] = np.zeros(2)
    for g in turn:
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    step = m / (1 - 0.9**t) / np.sqrt(v / (1 - 0.999**t))
    bound = energy_ratio_upper_bound(turn)
    assert np.array_equal(np.linalg.norm(turn, axis=1), np.ones(t))
    assert 2 < step[1] <= bound[-1, 1]
    assert bound[-1, 0] < 1
    swinging = np.stack([np.arange(t) % 2, 1 - np.arange(t) % 2], axis=1).astype(float)
    assert energy_ratio_upper_bound(swinging)[-1].max() < 1.05


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_energy_ratio_upper_bound__of_growth_is_the_root_of_2a_plus_1(power: float) -> None:
    """g ~ t^a over steps that v still remembers whole and m sees as the end: EMA_b1 -> T^2a, EMA_b2 -> T^2a/(2a+1)."""
    t = 4000
    got = energy_ratio_upper_bound(np.arange(1, t + 1.0) ** power, 0.9, 1 - 1e-9)[-1]
    memory = 2 * power * 10 / t  # m looks 10 steps back
    assert got == pytest.approx(math.sqrt(2 * power + 1), rel=2 * memory, abs=0)


@given(st.integers(0, 2**32))
def test_energy_ratio_upper_bound__minds_no_scale(seed: int) -> None:
    g = rng_for("energy", seed).normal(size=(30, 4))
    plain = energy_ratio_upper_bound(g)
    for scale in (2.0**-1000, 2.0**900):
        assert np.array_equal(energy_ratio_upper_bound(g * scale), plain)


def test_energy_ratio_upper_bound__covers_gradients_whose_square_is_lost() -> None:
    """The square of a recent 2^-600 underflows beside a 1 that both averages have nearly forgotten."""
    history = np.concatenate([[2.0**-600], [0.0], [1.0]])
    got = energy_ratio_upper_bound(history)
    for t in range(1, 4):
        step_sq, v, _ = squares([Fraction(float(g)) for g in history[:t]], 0.9, 0.999)
        assert math.isinf(got[t - 1]) or step_sq / v <= Fraction(float(got[t - 1])) ** 2
    assert np.isinf(got).tolist() == [True, True, False]
    fading = energy_ratio_upper_bound(np.concatenate([[1.0], np.zeros(60)]), 0.0, 2.0**-20)
    assert np.isinf(fading[52:]).all()  # v is below the normal range
    assert (fading[1:52] < 1e-3).all()


def refused() -> list[tuple[str, NDArray[Any], dict[str, float]]]:
    return [
        ("gradients must be finite", np.array([1.0, math.nan]), {}),
        ("gradients must be finite", np.ones((0, 3)), {}),
        ("gradients must be finite", np.array(1.0), {}),
        ("beta1 must be", np.ones(2), {"beta1": 1.0}),
    ]


@pytest.mark.parametrize(("message", "gradients", "options"), refused())
def test_energy_ratio_upper_bound__refuses(message: str, gradients: NDArray[Any], options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=message):
        energy_ratio_upper_bound(gradients, **options)
