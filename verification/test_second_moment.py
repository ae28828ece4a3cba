from __future__ import annotations

import math
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from unforgotten.theory.geometry.adamw import adamw_displacement_upper_bound, extremal_gradients
from unforgotten.theory.geometry.second_moment import second_moment_displacement_upper_bound
from unforgotten.verification.oracles import U64
from unforgotten.verification.recording.tallies import record


class Motion(NamedTuple):
    """What AdamW does with gradients, by its recursion at eps = 0: v of every step, and lr_t m^_t / sqrt(v^_t) of each."""

    second_moments: NDArray[Any]
    steps: NDArray[Any]


def motion(gradients: NDArray[Any], rates: NDArray[Any], beta1: float, beta2: float) -> Motion:
    m = v = 0.0
    second, steps = [], []
    for t, (g, lr) in enumerate(zip(gradients.tolist(), rates.tolist(), strict=True), 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        second.append(v)
        corrected = v / (1 - beta2**t)
        steps.append(lr * m / (1 - beta1**t) / math.sqrt(corrected) if v else 0.0)
    return Motion(np.array(second), np.array(steps))


def slack(t: int, beta1: float, beta2: float) -> float:
    """Relative error of a sum of `motion`'s steps: as counted in test_adamw, 8 roundings a step and the corrections."""
    return U64 * (16 * t + 4 / (1 - beta1) + 4 / (1 - beta2) + 64)


@st.composite
def histories(draw: st.DrawFn) -> tuple[NDArray[Any], NDArray[Any], list[int]]:
    """Draw gradients, learning rates and the steps that are recorded. Shrinks to one step with a gradient of 0."""
    length = draw(st.integers(1, 40))
    sizes = st.integers(-30, 30).map(lambda k: 2.0**k)
    values = st.one_of(st.just(0.0), st.floats(-1, 1, width=32).filter(lambda x: x == 0 or abs(x) > 1e-6), sizes)
    gradients = np.array(draw(st.lists(values, min_size=length, max_size=length)))
    rates = np.array(draw(st.lists(st.sampled_from([1.0, 0.5, 0.0, 2.0]), min_size=length, max_size=length)))
    recorded = draw(st.sets(st.integers(1, length), max_size=8)) | {length}
    return gradients, rates, sorted(recorded)


decays = st.sampled_from([(0.9, 0.999), (0.0, 0.9), (0.5, 0.25), (0.9, 0.95), (0.99, 0.5)])


@given(histories(), decays)
def test_second_moment_displacement_upper_bound__holds_for_any_gradients(
    history: tuple[NDArray[Any], NDArray[Any], list[int]], betas: tuple[float, float]
) -> None:
    """The sum of the sizes of the steps, not of the steps alone, is below it."""
    gradients, rates, times = history
    found = motion(gradients, rates, *betas)
    bound = float(
        second_moment_displacement_upper_bound(rates.tolist(), times, found.second_moments[np.array(times) - 1], *betas)
    )
    moved = float(np.abs(found.steps).sum())
    assert moved <= bound * (1 + slack(len(rates), *betas))
    assert bound <= adamw_displacement_upper_bound(rates.tolist(), len(rates), *betas)
    if bound:
        record("second_moment_displacement_upper_bound", gradients, rates, times, ratio=min(1.0, moved / bound))


@given(histories(), decays)
def test_second_moment_displacement_upper_bound__falls_with_every_record(
    history: tuple[NDArray[Any], NDArray[Any], list[int]], betas: tuple[float, float]
) -> None:
    gradients, rates, times = history
    v = motion(gradients, rates, *betas).second_moments
    few, all_of_them = (
        float(second_moment_displacement_upper_bound(rates.tolist(), at, v[np.array(at) - 1], *betas))
        for at in (times, list(range(1, len(rates) + 1)))
    )
    # each window adds the roundings of its logarithms, of sizes up to 60, to what is known
    assert all_of_them <= few * (1 + slack(len(rates), *betas)) + 1e3 * U64 * len(rates)


@pytest.mark.parametrize("t", [1, 2, 10, 200])
def test_second_moment_displacement_upper_bound__holds_for_the_largest_last_step(t: int) -> None:
    """`extremal_gradients` with a rate at the last step alone: T5's c_t, which the second moment cannot undercut much."""
    gradients, rates = extremal_gradients(t), np.append(np.zeros(t - 1), 1.0)
    found = motion(gradients, rates, 0.9, 0.999)
    bound = float(second_moment_displacement_upper_bound(rates.tolist(), list(range(1, t + 1)), found.second_moments))
    assert abs(found.steps.sum()) <= bound * (1 + slack(t, 0.9, 0.999))


def test_second_moment_displacement_upper_bound__is_tighter_than_t5_for_ordinary_gradients() -> None:
    """230 steps of lr: T5 says 2.29 lr a step. Recorded at every step, or at six, and at the first and last alone."""
    t = 230
    found = motion(np.ones(t), np.ones(t), 0.9, 0.999)
    whole = adamw_displacement_upper_bound(1.0, t) / t
    assert found.steps.sum() == pytest.approx(t, rel=slack(t, 0.9, 0.999))
    bounds = [
        float(second_moment_displacement_upper_bound(1.0, times, found.second_moments[np.array(times) - 1])) / t
        for times in (list(range(1, t + 1)), [1, 5, 20, 60, 120, 230], [1, 230])
    ]
    assert 1 < bounds[0] < 1.2 < bounds[1] < 1.4 < bounds[2] < whole
    assert whole > 2


def test_second_moment_displacement_upper_bound__by_hand() -> None:
    """One step: x_1 = K_1 = 1. Two at b1 = 0 and b2 = 1/2, v_2 = v_1, so that x_2 = 1/2 and at most log 2.

    K_1 = 1 and K_2 = 3/2: the bound is sqrt(2 (1 + 3/2 log 2)).
    """
    one = second_moment_displacement_upper_bound(3.0, [1], [0.25])
    assert one == pytest.approx(3.0, rel=128 * U64)
    two = float(second_moment_displacement_upper_bound(1.0, [1, 2], [0.5, 0.5], 0.0, 0.5))
    assert two == pytest.approx(min(math.sqrt(2 * (1 + 1.5 * math.log(2))), 1 + math.sqrt(1.5)), rel=256 * U64)
    late = float(second_moment_displacement_upper_bound(1.0, [2], [0.5], 0.0, 0.5))
    assert late == pytest.approx(min(math.sqrt(2 * 2.5), 1 + math.sqrt(1.5)), rel=256 * U64)


def test_second_moment_displacement_upper_bound__takes_many_weights_and_rests_with_no_gradient() -> None:
    v = np.array([[0.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 2.0, 1.0]])
    got = second_moment_displacement_upper_bound(1.0, [1, 2, 3], v)
    assert got.shape == (3,)
    assert got[0] == 0
    for i in range(3):
        assert got[i] == second_moment_displacement_upper_bound(1.0, [1, 2, 3], v[:, i])
    # the first gradient is 0: of three steps the first moves nothing
    assert got[2] < adamw_displacement_upper_bound(1.0, 3)


def test_second_moment_displacement_upper_bound__refuses() -> None:
    for times, v, message in (
        ([], [], "times must ascend"),
        ([0, 1], [1.0, 1.0], "times must ascend"),
        ([1, 1], [1.0, 1.0], "times must ascend"),
        ([1, 2], [1.0], "second_moments must be"),
        ([1], [[[1.0]]], "second_moments must be"),
        ([1], [-1.0], "second_moments must be finite"),
        ([1], [math.nan], "second_moments must be finite"),
        ([1, 2], [1.0, 0.9], "must not fall faster"),
        ([1, 2], [1.0, 0.0], "must not fall faster"),
    ):
        with pytest.raises(ValueError, match=message):
            second_moment_displacement_upper_bound(1.0, times, v)
    with pytest.raises(ValueError, match="lr must be a number or one for each of 2 steps"):
        second_moment_displacement_upper_bound([1.0], [1, 2], [1.0, 1.0])
    with pytest.raises(ValueError, match="beta2 must be in"):
        second_moment_displacement_upper_bound(1.0, [1], [1.0], 0.9, 1.0)
    # what states in float32 round is forgiven
    kept = np.float32(0.999) * np.float32(0.7)
    second_moment_displacement_upper_bound(1.0, [1, 2], [np.float32(0.7), np.nextafter(kept, np.float32(0))])


def test_second_moment_displacement_upper_bound__holds_for_torch() -> None:
    """torch.optim.AdamW in float64, 60 steps of three weights; `exp_avg_sq` read at four of them."""
    torch = pytest.importorskip("torch")
    w = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = torch.optim.AdamW([w], lr=1e-3, eps=1e-30, weight_decay=0.0)
    seen, times = [], [1, 7, 30, 60]
    for t in range(1, 61):
        w.grad = torch.tensor([1.0, math.sin(t), 1.1**t], dtype=torch.float64)
        optimizer.step()
        if t in times:
            seen.append(optimizer.state[w]["exp_avg_sq"].numpy().copy())
    bound = second_moment_displacement_upper_bound(1e-3, times, np.stack(seen))
    moved = np.abs(w.detach().numpy())
    assert (moved <= bound * (1 + slack(60, 0.9, 0.999))).all()
    assert moved[0] > bound[0] / 2
