from __future__ import annotations

import math

import numpy as np

from unforgotten.theory.models.tails import empirical_bernstein_radius
from unforgotten.verification.chance import hoeffding_radius, rng_for
from unforgotten.verification.oracles import U64


def test_empirical_bernstein_radius__is_the_formula() -> None:
    x = np.array([0.0, 1.0, 0.5, 0.5])
    log = math.log(4 / 0.05)
    expected = math.sqrt(2 * (0.5 / 3) * log / 4) + 7 * 2 * log / (3 * 3)
    got = empirical_bernstein_radius(x, -1.0, 1.0, 0.05)
    assert expected * (1 - 64 * U64) <= got <= expected * (1 + 128 * U64)


REPLICATES, SAMPLES = 4_000, 200


def misses(alpha: float, *, shrink: float = 1.0) -> float:
    """Share of intervals that miss the mean, for independent samples of unequal means."""
    rng = rng_for("empirical", alpha, shrink)
    means = np.linspace(0.02, 0.1, SAMPLES)
    missed = 0
    for _ in range(REPLICATES):
        x = (rng.uniform(size=SAMPLES) < means).astype(np.float64)
        radius = shrink * empirical_bernstein_radius(x, 0.0, 1.0, alpha)
        missed += abs(float(x.mean() - means.mean())) > radius
    return missed / REPLICATES


def test_empirical_bernstein_radius__covers_the_mean() -> None:
    """Hoeffding, false alarm 1e-10; unequal means, as those of the weights are."""
    assert misses(0.1) <= 0.1 + hoeffding_radius(REPLICATES)


def test_empirical_bernstein_radius__coverage_has_power() -> None:
    assert misses(0.1, shrink=0.25) > 0.1 + hoeffding_radius(REPLICATES)


def test_empirical_bernstein_radius__needs_no_variance_and_beats_hoeffding_where_it_is_small() -> None:
    x = np.zeros(10_000)
    assert empirical_bernstein_radius(x, 0.0, 1.0, 1e-6) < math.sqrt(math.log(2 / 1e-6) / 20_000)
