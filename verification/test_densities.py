# pyright: reportAttributeAccessIssue=false
# scipy's frozen distributions are declared as discrete ones.
from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from scipy import integrate, stats

from unforgotten.theory.laws.absmax import (
    absmax_cdf,
    absmax_law,
    expected_absmax,
    expected_inverse_absmax,
    magnitude_cdf,
    observed_absmax,
)
from unforgotten.theory.laws.densities import (
    DENSITIES,
    STUDENT_FREEDOM,
    Density,
    Empirical,
    Gaussian,
    Laplace,
    StudentT,
    density_named,
    empirical,
)
from unforgotten.verification.chance import FALSE_ALARM, rng_for

SPECIAL = 64 * np.finfo(float).eps  # special functions of scipy: a few ulp each, composed
INVERTED = 32 * SPECIAL
"""A quantile and its law: |x f(x) / p|, how often an error of x counts in p, is at most 23, a Gaussian's at 10^-6."""
FAR = 256 * SPECIAL  # the same at 10^-30, where it is 135
INTERPOLATED = 16 * np.finfo(float).eps  # two interpolations of a few roundings, x f(x) being below 1/2
BINS = 256  # a histogram is off by the share of one bin at most
QUOTIENT = 4 * 2.0**-53  # two roundings of a share, on either side
SCALED = 1e-12  # the same quadrature at three times the scale: some thousand roundings in float64
HISTOGRAM = 0.02  # 4,096 bins of 2^18 weights, blocks of 64
QUADRATURE = 1e-7  # scipy's quad is asked for 1e-10; the law's own rule errs by 3e-9
REFERENCE = {
    "gaussian": stats.norm(),
    "laplace": stats.laplace(scale=1 / math.sqrt(2)),
    "student-t": stats.t(STUDENT_FREEDOM, scale=math.sqrt(1 - 2 / STUDENT_FREEDOM)),
}
SAMPLE = 20_000
ASKED: dict[str, Any] = {
    "epsabs": 1e-12,
    "epsrel": 1e-11,
    "limit": 400,
}  # of scipy's quad, for a reference far below the tolerances
TWO_SPECIAL_FUNCTIONS = 2.0**-30
"""Relative: the rounding of u, 2^-53, times at most z^2 + 1 = 37 of a Gaussian tail, leaves 2^-47; the rest is for the special
functions of two libraries, which state no bound."""
SIZES = (2, 16, 64, 4096)


@pytest.fixture(params=DENSITIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@given(st.sampled_from(sorted(DENSITIES)), st.floats(-6, 6), st.floats(1e-6, 1e3))
def test_densities__are_those_of_scipy_stats(name: str, z: float, scale: float) -> None:
    density, reference, x = density_named(name, scale), REFERENCE[name], z * scale
    u = x / scale
    assert float(density.cdf(x)) == pytest.approx(reference.cdf(u), rel=TWO_SPECIAL_FUNCTIONS)
    assert float(density.pdf(x)) == pytest.approx(reference.pdf(u) / scale, rel=TWO_SPECIAL_FUNCTIONS)
    assert density.scale == scale
    assert reference.std() == pytest.approx(1.0)


@given(st.sampled_from(sorted(DENSITIES)), st.floats(1e-6, 1 - 1e-6))
def test_densities__quantiles_invert(name: str, p: float) -> None:
    density = density_named(name, 0.02)
    assert float(density.cdf(density.quantile(p))) == pytest.approx(p, rel=INVERTED)
    above = density.magnitude_above(p)
    assert 1 - float(magnitude_cdf(above, density)) == pytest.approx(p, rel=INVERTED, abs=SPECIAL)


def test_densities__reach_far_into_the_tail(name: str) -> None:
    assert isinstance(density_named(name, 1.0), Density)
    x = density_named(name, 1.0).magnitude_above(np.array([1e-30, 1e-20, 1e-10]))
    assert (np.diff(x) < 0).all()
    assert np.isfinite(x).all()
    assert float(2 * REFERENCE[name].sf(x[0])) == pytest.approx(1e-30, rel=FAR)


def test_densities__refuse_bad_parameters() -> None:
    for bad in (0.0, -1.0, math.inf, math.nan):
        for density in (Gaussian, Laplace, StudentT):
            with pytest.raises(ValueError, match="scale must be positive"):
                density(bad)
    with pytest.raises(ValueError, match="freedom must exceed 2"):
        StudentT(1.0, 2.0)
    with pytest.raises(ValueError, match="density must be one of gaussian"):
        density_named("cauchy", 1.0)
    for w in ([1.0, 1.0], [1.0, math.nan], []):
        with pytest.raises(ValueError, match="finite weights that differ"):
            empirical(np.array(w))


def test_empirical__is_within_a_bin_of_the_sample(name: str) -> None:
    w = density_named(name, 1.0).quantile(rng_for(name).uniform(size=SAMPLE))
    density = empirical(w, BINS)
    assert isinstance(density, Empirical)
    assert isinstance(density, Density)
    assert density.scale == pytest.approx(w.std())
    x = np.quantile(w, np.linspace(0.001, 0.999, 97))
    exact = (w[:, None] <= x).mean(axis=0)
    assert np.abs(density.cdf(x) - exact).max() <= 1 / BINS + 1 / SAMPLE
    p = np.linspace(0, 1, 33)
    assert density.cdf(density.quantile(p)) == pytest.approx(p, abs=INTERPOLATED)
    tail = np.array([0.5, 0.1, 0.01])
    assert 1 - magnitude_cdf(density.magnitude_above(tail), density) == pytest.approx(tail, abs=1 / BINS)


def test_empirical__is_a_density() -> None:
    w = np.concatenate([np.zeros(50), np.arange(1, 100) / 7])  # ties, and no negative weight
    density = empirical(w, 32)
    pieces = np.diff(density.knots) @ density.pdf((density.knots[1:] + density.knots[:-1]) / 2)
    assert pieces == pytest.approx(1.0)
    assert (density.pdf(np.array([-1.0, 100.0])) == 0).all()
    assert float(density.magnitude_above(0.0)) == w.max()
    positive = empirical(np.arange(1.0, 10.0))
    assert 0 <= float(positive.magnitude_above(1.0)) <= 1  # the least weight


@given(st.sampled_from(sorted(DENSITIES)), st.integers(1, 5000), st.floats(0.01, 6))
def test_absmax_cdf__is_a_power(name: str, size: int, x: float) -> None:
    reference = REFERENCE[name]
    base = 1 - 2 * reference.sf(x)
    rounding = size * SPECIAL / base  # the relative error of the base, of which 1 was taken away, times the exponent
    found = float(absmax_cdf(x, density_named(name, 1.0), size))
    assert found == pytest.approx(base**size, rel=rounding, abs=np.finfo(float).tiny)


@pytest.mark.parametrize("size", SIZES)
def test_absmax_cdf__is_the_law_of_simulated_blocks(name: str, size: int) -> None:
    """Massart's DKW: P(sup |F_n - F| > r) <= 2 exp(-2 n r^2), r at the false alarm of 1e-10."""
    blocks = 2_000_000 // size if size > 64 else 20_000
    density = density_named(name, 1.0)
    w = density.quantile(rng_for(name, size).uniform(size=(blocks, size)))
    absmax = np.sort(np.abs(w).max(axis=1))
    gap = np.abs(absmax_cdf(absmax, density, size) - np.arange(1, blocks + 1) / blocks).max()
    radius = math.sqrt(math.log(2 / FALSE_ALARM) / (2 * blocks))
    assert gap <= radius + 1 / blocks
    wrong = np.abs(absmax_cdf(absmax, density, 2 * size) - np.arange(1, blocks + 1) / blocks).max()
    assert wrong > radius + 1 / blocks  # blocks twice as large would be seen


def _mean(name: str, size: int, power: int) -> float:
    """E[absmax^power] by quad over u = P(absmax <= a), through stats' own tail quantile."""
    isf = REFERENCE[name].isf

    def integrand(y: float) -> float:
        g = math.exp(-y - math.exp(-y))
        return g * float(isf(-math.expm1(-math.exp(-y) / size) / 2)) ** power

    return float(integrate.quad(integrand, -4.2, 60, **ASKED)[0])


@pytest.mark.parametrize("size", SIZES)
def test_expected_absmax__is_the_integral(name: str, size: int) -> None:
    density = density_named(name, 1.0)
    assert expected_absmax(density, size) == pytest.approx(_mean(name, size, 1), rel=QUADRATURE)
    assert expected_absmax(density_named(name, 3.0), size) == pytest.approx(
        3 * expected_absmax(density, size), rel=SCALED
    )


@pytest.mark.parametrize("size", SIZES)
def test_expected_inverse_absmax__is_the_integral(name: str, size: int) -> None:
    density = density_named(name, 1.0)
    assert expected_inverse_absmax(density, size) == pytest.approx(_mean(name, size, -1), rel=QUADRATURE)
    assert expected_inverse_absmax(density, size) > 1 / expected_absmax(density, size)  # Jensen


def test_expected_absmax__of_two_gaussians_is_known() -> None:
    """E max(|x|, |y|) = 2 / sqrt(pi) for two independent standard normals."""
    assert expected_absmax(Gaussian(1.0), 2) == pytest.approx(2 / math.sqrt(math.pi), rel=QUADRATURE)


def test_absmax__refuses_bad_sizes() -> None:
    with pytest.raises(ValueError, match="size must be at least 1"):
        absmax_cdf(1.0, Gaussian(1.0), 0)
    with pytest.raises(ValueError, match="size must be at least 2"):
        expected_inverse_absmax(Gaussian(1.0), 1)
    with pytest.raises(ValueError, match="absmax must be positive"):
        observed_absmax(np.zeros(3), 64)


def test_observed_absmax__keeps_the_mean_and_drops_empty_blocks() -> None:
    absmax = np.append(rng_for("observed").exponential(size=999), 0.0)
    law = observed_absmax(absmax, 64, nodes=10)
    assert law.weights.sum() == pytest.approx(1.0)
    assert law.weights @ law.values == pytest.approx(absmax[:-1].mean())
    assert len(law.values) == 10
    assert absmax_law(Gaussian(1.0), 64).weights.sum() == pytest.approx(1.0)


def test_empirical__has_bins_between_equal_shares() -> None:
    """Ten bins of 1001 weights have a tenth each; a share that would end between two weights ends at the even rank."""
    tenths = empirical(np.arange(1001.0), 10)
    assert tenths.knots.tolist() == [100.0 * k for k in range(11)]
    assert tenths.below == pytest.approx(np.arange(11) / 10, rel=QUOTIENT)
    assert empirical(np.arange(6.0), 2).knots.tolist() == [0, 2, 5]
    assert empirical(np.arange(8.0), 2).knots.tolist() == [0, 4, 7]


def test_empirical__has_magnitudes_down_to_0_where_no_knot_is_0() -> None:
    """Half of the weights of (-1, 1, 3) are spread over [-1, 1], so three quarters exceed 1/2."""
    density = empirical(np.array([-1.0, 1.0, 3.0]), 2)
    assert density.magnitude_above([1.0, 0.75, 0.5, 0.0]).tolist() == [0, 0.5, 1, 3]


@pytest.mark.parametrize("name", sorted(DENSITIES))
def test_absmax_law__refuses_a_histogram_whose_ends_it_reaches(name: str) -> None:
    """4,096 bins of 2^18 weights: blocks of 127 at most. In 64 1 / absmax is right within 2 %, and far off beyond."""
    law = density_named(name, 1.0)
    rng = rng_for("histogram", name)
    w = law.magnitude_above(rng.uniform(size=2**18)) * rng.choice([-1.0, 1.0], 2**18)
    histogram = empirical(w)
    inverse = expected_inverse_absmax(histogram, 64)
    assert inverse == pytest.approx(expected_inverse_absmax(law, 64), rel=HISTOGRAM, abs=0)
    with pytest.raises(ValueError, match=r"at most 127 for a histogram .* got size=4096; use observed_absmax"):
        absmax_law(histogram, 4096)
    fine = empirical(np.arange(17.0), 16)  # an end bin holds a sixteenth
    with pytest.raises(ValueError, match="size must be at most 0"):
        absmax_law(fine, 1)


def test_absmax_law__minds_the_coarser_end_of_a_histogram() -> None:
    lopsided = Empirical(np.array([-1.0, 0.0, 0.5, 1.0]), np.array([0.0, 0.001, 0.5, 1.0]), 0.5)
    with pytest.raises(ValueError, match=r"end bins hold 0\.5 of the weights"):
        absmax_law(lopsided, 16)
