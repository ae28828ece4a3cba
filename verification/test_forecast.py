"""The forecast: replayed as far as the pilot went, measured as an update is, with ranges that cover."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unforgotten.theory.calculators import forecast as module
from unforgotten.theory.calculators.forecast import LEVEL, SLOWER, Pilot, forecast, replayed
from unforgotten.theory.calculators.forecast_text import as_object, lines
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.geometry.replay import Adam, bfloat16, replay
from unforgotten.theory.laws.update import survival

BLOCKS, SIZE, STEPS = 40, 64, 30
SUMS = BLOCKS * SIZE * 2.0**-52  # of two float64 sums over the weights, in another order


def pilot(*, lr: float = 2e-5, steps: int = STEPS) -> Pilot:
    """A slope with noise on it, on weights that bfloat16 holds."""
    random = np.random.default_rng(7)
    w = bfloat16(random.normal(0, 0.02, (BLOCKS, SIZE)).astype(np.float32))
    slope = random.normal(size=w.shape)
    gradients = (slope + 0.2 * random.normal(size=(steps, *w.shape))).astype(np.float32)
    largest = np.abs(w).max(1)
    return Pilot(w, largest * np.float32(1.5), gradients, np.full(steps, lr), Adam())


def test_replayed__in_float32_is_the_pilot_itself() -> None:
    sample = pilot()
    path = replayed(sample, "fp32")
    *_, end = replay(sample.weights, sample.steps(STEPS), sample.adam, "fp32")
    assert (path.slower, path.steps, path.progress) == (1, STEPS, 1.0)
    assert np.array_equal(path.weights, end)


def test_replayed__in_bfloat16_goes_as_far_with_more_steps_and_no_further() -> None:
    sample = pilot()
    path = replayed(sample, "bf16")
    assert path.slower in SLOWER[1:]
    assert SLOWER[SLOWER.index(path.slower) - 1] * STEPS < path.steps <= path.slower * STEPS
    assert np.array_equal(bfloat16(path.weights), path.weights)
    towards = sample.gradients[-3:].mean(0, dtype=np.float64)  # a tenth of the steps
    start = sample.weights.astype(np.float64)
    *_, goal = (
        float((towards * (w - start)).sum()) for w in replay(sample.weights, sample.steps(STEPS), Adam(), "fp32")
    )
    path_bf16 = replay(sample.weights, sample.steps(int(path.slower) * STEPS), Adam(), "bf16")
    gone = [float((towards * (w - start)).sum()) for w in path_bf16][: path.steps]
    assert path.progress == pytest.approx(gone[-1] / goal, rel=SUMS)
    assert gone[-1] <= goal < gone[-2] < 0


@pytest.mark.parametrize(("steps", "last"), [(4, 1), (30, 3), (70, 7)])
def test_slope__is_the_mean_of_the_last_tenth_and_of_one_at_least(steps: int, last: int) -> None:
    sample = pilot(steps=steps)
    assert np.array_equal(sample.slope, sample.gradients[-last:].mean(0, dtype=np.float64))


@pytest.mark.parametrize("name", ["int4-g64", "nf4-b64", "fp4-b64", "int4-g32", "q4_0", "mxfp4-b32", "int4-g64-asym"])
def test_forecast__of_blocks_is_the_survival_of_the_update(name: str) -> None:
    sample = pilot()
    path = replayed(sample, "bf16")
    told, left = forecast(sample, path, name), survival(sample.weights, path.weights, format_named(name), "adaptive")
    assert told.gain == pytest.approx(left.gain, rel=SUMS)
    assert told.gain_range[0] < told.gain < told.gain_range[1]


def test_forecast__of_rows_takes_their_scale() -> None:
    sample = pilot()
    path = replayed(sample, "bf16")
    largest = sample.row_absmax[:, None]
    before, after = (np.concatenate([w, largest], axis=1) for w in (sample.weights, path.weights))
    left = survival(before, after, format_named("int4-row"), "adaptive")
    assert forecast(sample, path, "int4-row").gain == pytest.approx(left.gain, rel=SUMS)


def test_forecast__functional_gain_is_along_the_last_gradients() -> None:
    sample = pilot()
    path = replayed(sample, "bf16")
    told = forecast(sample, path, "int4-g64")
    same = Pilot(
        sample.weights, sample.row_absmax, np.repeat((path.weights - sample.weights)[None], STEPS, 0), sample.lr, Adam()
    )
    along = forecast(same, path, "int4-g64")  # the gain is the functional gain of a slope that is the update
    assert along.functional_gain == pytest.approx(told.gain, rel=SUMS)
    assert along.functional_range == pytest.approx(told.gain_range, rel=SUMS)
    assert told.returned == 1 - told.functional_gain


def test_ratio__range_covers_at_its_level() -> None:
    """600 samples of 60 blocks whose true ratio is 1/2: misses are 5 % but for a bootstrap's own, small here."""
    random = np.random.default_rng(0)
    held = 0
    for seed in range(600):
        under = random.gamma(8.0, size=60)
        over = under * 0.5 + random.normal(0, 0.5, 60)
        low, high = module._ratio(over, under, seed)[1]
        held += low <= 0.5 <= high
    assert LEVEL == 0.95
    assert 0.92 < held / 600 < 0.975


def test_ratio__of_equal_blocks_is_certain() -> None:
    assert module._ratio(np.full(8, 0.25), np.full(8, 1.0), 0) == (0.25, (0.25, 0.25))


def test_forecast__says_that_nothing_moves() -> None:
    sample = pilot(lr=1e-9)
    path = replayed(sample, "bf16")
    assert (path.slower, path.steps, path.progress) == (SLOWER[-1], SLOWER[-1] * STEPS, 0.0)
    told = forecast(sample, path, "int4-g64")
    assert math.isnan(told.gain)
    first, second, _ = lines([path], [told])
    how = f"bf16: each gradient given 64 times, {path.steps} steps"
    assert first == f"{how}; it went only 0% as far as the pilot, slower than 64 was not tried"
    assert second == "  int4-g64     undefined: nothing moves"
    assert as_object([path], [told])["formats"][0]["gain"] is None


def test_lines__say_no_more_where_all_was_gone() -> None:
    sample = pilot()
    path = replayed(sample, "fp32")
    assert lines([path], [forecast(sample, path, "int8-row")])[0] == f"fp32: each gradient given 1 times, {STEPS} steps"


@given(own=st.integers(1, 9), count=st.integers(1, 40))
def test_steps__go_through_the_pilot_evenly(own: int, count: int) -> None:
    """Each gradient as often as the next, but for one; in their order, and the last no further than the pilot's last."""
    gradients = np.arange(own, dtype=np.float32)[:, None, None] * np.ones((1, 1, 2), np.float32)
    sample = Pilot(np.ones((1, 2), np.float32), np.ones(1), gradients, np.arange(own) / 8, Adam())
    given_steps = list(sample.steps(count))
    order = [int(g[0, 0]) for g, _ in given_steps]
    assert [lr * 8 for _, lr in given_steps] == order
    assert order == sorted(order)
    times = np.bincount(order, minlength=own)
    assert len(order) == count
    assert times.max() - times.min() <= 1


@pytest.mark.parametrize("steps", [1, STEPS // 2, STEPS, 3 * STEPS])
def test_replayed__for_a_number_of_steps_makes_as_many(steps: int) -> None:
    sample = pilot()
    path = replayed(sample, "bf16", steps=steps)
    assert (path.steps, path.slower) == (steps, steps / STEPS)
    *_, end = replay(sample.weights, sample.steps(steps), Adam(), "bf16")
    assert np.array_equal(path.weights, end)
    slope, start = sample.slope, sample.weights.astype(np.float64)
    whole = replayed(sample, "fp32").weights
    share = (slope * (end - start)).sum() / (slope * (whole - start)).sum()
    assert path.progress == pytest.approx(share, rel=1e-9)
    (first, *_) = lines([path], [], steps=steps)
    assert first == f"bf16: the pilot's gradients over {steps} steps; it goes {path.progress:.0%} as far as the pilot"


def test_replayed__for_a_number_of_steps_needs_no_progress() -> None:
    """A loss that goes nowhere has no goal, and a number of steps needs none."""
    sample = pilot()
    nowhere = replace(sample, gradients=np.zeros_like(sample.gradients))
    path = replayed(nowhere, "bf16", steps=4)
    assert math.isnan(path.progress)
    assert as_object([path], [])["replays"]["bf16"]["progress"] is None
    with pytest.raises(ValueError, match="steps must be at least 1, got steps=0"):
        replayed(sample, "bf16", steps=0)


def test_replayed__refuses_a_pilot_that_went_nowhere() -> None:
    sample = pilot()
    nowhere = Pilot(sample.weights, sample.row_absmax, 0 * sample.gradients, sample.lr, Adam())
    with pytest.raises(ValueError, match=r"must be below 0, got 0$"):
        replayed(nowhere, "bf16")


@pytest.mark.parametrize("name", ["int4-tensor", "int4-g128", "int4-row-asym", "nvfp4", "q4_k", "fp8-cast"])
def test_forecast__refuses_formats_whose_scale_a_sample_does_not_hold(name: str) -> None:
    sample = pilot()
    with pytest.raises(ValueError, match=rf"^format must share a scale among 64 neighbours, .*, got format='{name}'$"):
        forecast(sample, replayed(sample, "fp32"), name)
