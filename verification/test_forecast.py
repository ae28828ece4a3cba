"""The forecast: replayed as far as the pilot went, measured as an update is, with ranges that cover."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unforgotten.theory.calculators import forecast as module
from unforgotten.theory.calculators.forecast import LEVEL, LIMIT, Pilot, forecast, replayed
from unforgotten.theory.calculators.forecast_text import as_object, lines
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.geometry.replay import Adam, Storage, bfloat16, replay
from unforgotten.theory.laws.update import survival

Array = NDArray[Any]
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


def warmed(sample: Pilot) -> Pilot:
    """The pilot with a learning rate that rises and falls, so that it matters at which step it is read."""
    shape = np.concatenate([np.linspace(0.5, 1, STEPS // 2), np.linspace(1, 0.6, STEPS - STEPS // 2)])
    return replace(sample, lr=sample.lr * shape)


def test_replayed__in_float32_is_the_pilot_itself() -> None:
    sample = pilot()
    path = replayed(sample, "fp32")
    *_, end = replay(sample.weights, sample.steps, sample.adam, "fp32")
    assert (path.slower, path.steps, path.progress) == (1, STEPS, 1.0)
    assert np.array_equal(path.weights, end)


def by_hand(sample: Pilot, storage: Storage, most: int, *, to_the_end: bool, rates: Sequence[int]) -> list[Array]:
    """Weights of a replay step by step, each from a replay anew: at equal progress, the gradient of the pilot."""
    towards = sample.gradients[-3:].mean(0, dtype=np.float64)  # a tenth of the steps

    def progress(w: Array) -> float:
        return float((towards * (w.astype(np.float64) - sample.weights)).sum())

    pilot_went = [progress(w) for w in replay(sample.weights, sample.steps, sample.adam, "fp32")]
    goal, given, path = pilot_went[-1], list[tuple[Array, float]](), list[Array]()
    for step in range(most):
        here = progress(path[-1]) / goal if path else 0.0
        if to_the_end and here >= 1:
            break
        reached = [0.0, *(part / goal for part in pilot_went[:-1])]
        index = max(i for i in range(STEPS) if max(reached[: i + 1]) <= max(here, 0.0))
        given.append((sample.gradients[index], float(sample.lr[rates[step]])))
        *_, w = replay(sample.weights, given, sample.adam, storage)
        path.append(w)
    return path


def test_replayed__in_bfloat16_goes_as_far_with_more_steps_and_no_further() -> None:
    sample = warmed(pilot())
    rates = [min(step, STEPS - 1) for step in range(LIMIT * STEPS)]
    expected = by_hand(sample, "bf16", LIMIT * STEPS, to_the_end=True, rates=rates)
    path = replayed(sample, "bf16")
    assert path.steps == len(expected) > STEPS
    assert path.slower == path.steps / STEPS
    assert np.array_equal(path.weights, expected[-1])
    assert np.array_equal(bfloat16(path.weights), path.weights)
    towards, start = sample.slope, sample.weights.astype(np.float64)
    *_, end = replay(sample.weights, sample.steps, Adam(), "fp32")
    goal, before, gone = (float((towards * (w - start)).sum()) for w in (end, expected[-2], expected[-1]))
    assert path.progress == pytest.approx(gone / goal, rel=SUMS)
    assert gone <= goal < before < 0


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
    assert (path.slower, path.steps, path.progress) == (LIMIT, LIMIT * STEPS, 0.0)
    told = forecast(sample, path, "int4-g64")
    assert math.isnan(told.gain)
    first, second, _ = lines([path], [told])
    how = f"bf16: {path.steps} steps, 64.0 times the pilot's"
    assert first == f"{how}; it went only 0% as far, more than 64 times were not tried"
    assert second == "  int4-g64     undefined: nothing moves"
    assert as_object([path], [told])["formats"][0]["gain"] is None


def test_lines__say_no_more_where_all_was_gone() -> None:
    sample = pilot()
    path = replayed(sample, "fp32")
    assert lines([path], [forecast(sample, path, "int8-row")])[0] == f"fp32: {STEPS} steps, 1.0 times the pilot's"


@pytest.mark.parametrize("steps", [1, STEPS // 2, STEPS, 2 * STEPS])
def test_replayed__for_a_number_of_steps_makes_as_many(steps: int) -> None:
    """Also beyond the end of the pilot, whose last gradient then goes on; the learning rate is spread over them."""
    sample = warmed(pilot())
    rates = [step * STEPS // steps for step in range(steps)]
    expected = by_hand(sample, "bf16", steps, to_the_end=False, rates=rates)
    path = replayed(sample, "bf16", steps=steps)
    assert (path.steps, path.slower) == (steps, steps / STEPS)
    assert np.array_equal(path.weights, expected[-1])
    whole = replayed(sample, "fp32").weights
    shares = [float((sample.slope * (w - sample.weights.astype(np.float64))).sum()) for w in (expected[-1], whole)]
    assert path.progress == pytest.approx(shares[0] / shares[1], rel=1e-9)
    (first, *_) = lines([path], [], steps=steps)
    assert first == f"bf16: {steps} steps, {steps / STEPS:.1f} times the pilot's; it goes {path.progress:.0%} as far"


def test_replayed__refuses_less_than_a_step() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, got steps=0"):
        replayed(pilot(), "bf16", steps=0)


def test_replayed__that_goes_back_is_given_the_first_gradient() -> None:
    """A first gradient against the slope is no progress: the replay is given it again, as the pilot had gone nowhere."""
    sample = pilot()
    gradients = sample.gradients.copy()
    gradients[:2] *= -1
    turned = replace(sample, gradients=gradients)
    expected = by_hand(turned, "fp32", 8, to_the_end=False, rates=[step * STEPS // 8 for step in range(8)])
    assert np.array_equal(replayed(turned, "fp32", steps=8).weights, expected[-1])


def test_replayed__refuses_a_pilot_that_went_nowhere() -> None:
    sample = pilot()
    nowhere = Pilot(sample.weights, sample.row_absmax, 0 * sample.gradients, sample.lr, Adam())
    with pytest.raises(ValueError, match=r"must be below 0, got 0$"):
        replayed(nowhere, "bf16")


@pytest.mark.parametrize(
    "name", ["int4-tensor", "int4-g128", "int4-row-asym", "nvfp4", "q4_k", "fp8-cast", "nf4-b64-dq", "fp8-b128x128"]
)
def test_forecast__refuses_formats_whose_scale_a_sample_does_not_hold(name: str) -> None:
    sample = pilot()
    with pytest.raises(ValueError, match=rf"^format must share a scale among 64 neighbours, .*, got format='{name}'$"):
        forecast(sample, replayed(sample, "fp32"), name)
