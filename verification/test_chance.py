from __future__ import annotations

import numpy as np
import pytest

from unforgotten.verification.chance import FALSE_ALARM, assert_mean, detectable_gap, hoeffding_radius, rng_for


def test_rng_for__repeats_and_separates() -> None:
    assert rng_for("a", 1).integers(2**60) == rng_for("a", 1).integers(2**60)
    assert rng_for("a", 1).integers(2**60) != rng_for("a", 2).integers(2**60)


@pytest.mark.parametrize("trials", [100, 10_000])
def test_hoeffding_radius__is_where_the_bound_is_the_false_alarm(trials: int) -> None:
    bound = 2 * np.exp(-2 * trials * hoeffding_radius(trials) ** 2)
    slack = 64 * np.finfo(float).eps  # exp magnifies the error of its argument, ln(2e10) < 24, by that much
    assert abs(bound / FALSE_ALARM - 1) <= slack


def test_assert_mean__sees_a_detectable_gap() -> None:
    trials = 10_000
    samples = rng_for("gap").uniform(size=trials) < 0.3
    assert_mean(samples, 0.3)
    for wrong in (0.3 - detectable_gap(trials), 0.3 + detectable_gap(trials)):
        with pytest.raises(AssertionError, match="mean is"):
            assert_mean(samples, wrong)
