from __future__ import annotations

import math
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import encode, fit_grid, round_trip, to_blocks
from unforgotten.theory.laws.absmax import absmax_law, expected_absmax, expected_inverse_absmax
from unforgotten.theory.laws.block_law import overtaking_probability
from unforgotten.theory.laws.boundary import moments
from unforgotten.theory.laws.concentration import concentrated_cosine, follower_ratio, needed_share
from unforgotten.theory.laws.densities import DENSITIES, Gaussian, density_named
from unforgotten.theory.laws.energy import energy_density
from unforgotten.theory.laws.regimes import (
    hidden_energy_upper_bound,
    hidden_wash_z,
    on_grid_gain,
    on_grid_survivor,
    swallowing_absmax,
)
from unforgotten.theory.laws.scaling import flip_rate, flip_ratio, steps_per_absmax
from unforgotten.verification.chance import assert_mean, hoeffding_radius, rng_for
from unforgotten.verification.oracles import U64, round_half_even
from unforgotten.verification.recording.tallies import record

ROUNDINGS = 16 * 2.0**-53
TRIALS = 400_000
SIGMAS = 6.5  # two-sided 1e-10 of a normal mean
steps = st.floats(2.0**-8, 2.0**8)


@given(st.floats(-100, 100), steps)
def test_on_grid_survivor__is_the_rounded_update(delta: float, step: float) -> None:
    exact = round_half_even(Fraction(delta / step)) * Fraction(step)
    assert float(on_grid_survivor(delta, step)) == float(exact)
    if abs(Fraction(delta)) < Fraction(step) / 2 * (1 - Fraction(1, 2**52)):
        assert float(on_grid_survivor(delta, step)) == 0


def test_on_grid_survivor__is_what_an_integer_grid_leaves_at_its_ends() -> None:
    """Weights on int4's grid at scale 1, block 1's absmax held by its first entry: the end code pushed out stays."""
    fmt = format_named("int4-g16")
    codes = np.arange(-7, 8)
    w = np.concatenate([[-7.0], codes])[None, :].astype(np.float32)
    for delta in (-3.0, -0.75, 0.25, 0.75, 2.0, 3.0):
        grid = fit_grid(to_blocks(w, fmt), fmt)
        after = encode(to_blocks(w + np.float32(delta), fmt), grid, fmt).ravel()
        moved = after - encode(to_blocks(w, fmt), grid, fmt).ravel()
        room = (w.ravel() + 7, 7 - w.ravel())
        assert np.array_equal(on_grid_survivor(np.full(16, delta), 1.0, room), moved.astype(float))
    assert on_grid_survivor(3.0, 1.0) == 3
    assert on_grid_survivor(3.0, 1.0, (14, 0)) == 0
    with pytest.raises(ValueError, match="room must not be negative"):
        on_grid_survivor(1.0, 1.0, (-1, 0))


@pytest.mark.parametrize("ratio", [0.2, 1.0, 2.5])
def test_on_grid_gain__is_that_of_gaussian_updates(ratio: float) -> None:
    """D delta / (6 spread)^2 lies in [0, 2] outside a tail that is smaller than the slack."""
    delta = rng_for(ratio).standard_normal(TRIALS)
    product = np.clip(on_grid_survivor(delta, ratio) * delta / 72, 0, 1)
    tail = 2e-9 * 72  # E[D delta; |delta| > 6] < E[2 delta^2; ...] + step terms
    assert_mean(product, on_grid_gain(1.0, ratio) / 72, slack=tail)


def test_on_grid_gain__runs_from_0_to_1() -> None:
    gains = [on_grid_gain(1.0, c) for c in (0.01, 0.5, 1.0, 2.0, 4.0, 8.0, 30.0)]
    assert gains[0] == pytest.approx(1.0, rel=1e-12)
    assert gains[-1] < 1e-40
    assert on_grid_gain(3.0, 6.0) == pytest.approx(on_grid_gain(1.0, 2.0), rel=ROUNDINGS)
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="spread must be positive"):
            on_grid_gain(bad, 1.0)


@given(st.sampled_from(["int4-g64", "int8-row", "nf4-b64", "fp4-b64"]), steps, st.floats(0.5, 0.999))
def test_swallowing_absmax__nothing_crosses_below_it(name: str, edge: float, inside: float) -> None:
    fmt, law = format_named(name), Gaussian(edge)
    a = np.array([swallowing_absmax(fmt, edge)])
    start, delta = -inside * edge * 0.9, inside * edge * 1.8
    m = moments(fmt, law, a, a, np.array([delta]), (start, start + 0.01 * edge * (1 - inside)))
    assert m.mass[0] > 0
    assert m.surviving_sq[0] == 0
    smaller = a * 0.5 * inside
    assert moments(fmt, law, smaller, smaller, np.array([delta])).surviving_sq[0] > 0


def test_swallowing_absmax__orders_the_formats() -> None:
    """bf16 at lr 1e-5 freezes |w| >= 2^-8. INT4 swallows from absmax 0.055 on; INT8, NF4 and FP4 need more."""
    need = {n: swallowing_absmax(format_named(n), 2.0**-8) for n in ("int4-g64", "nf4-b64", "int8-row", "fp4-b64")}
    assert need["int4-g64"] == pytest.approx(14 * 2.0**-8)
    assert need["int4-g64"] < need["nf4-b64"] < need["int8-row"] < need["fp4-b64"]
    with pytest.raises(ValueError, match="edge must be positive"):
        swallowing_absmax(format_named("int4-g64"), 0.0)


def test_hidden_energy_upper_bound__is_reached_by_the_farther_end() -> None:
    u = rng_for("hidden").uniform(size=TRIALS)
    farther = np.maximum(u, 1 - u)
    assert_mean(farther**2, hidden_energy_upper_bound(1.0))
    assert_mean(farther**2, hidden_energy_upper_bound(3.0) / 9)
    exact = Fraction(7, 12)  # twice the integral of u^2 from 1/2 to 1
    bound = hidden_energy_upper_bound(1.0)
    assert abs(Fraction(bound) - exact) <= exact * Fraction(U64)
    record("hidden_energy_upper_bound", 1.0, ratio=float(exact / Fraction(bound)))


@given(st.integers(1, 10**9), st.floats(0, 0.999))
def test_hidden_wash_z__is_the_standardized_zero(weights: int, p: float) -> None:
    z = hidden_wash_z(weights, p)
    assert z * math.sqrt(weights * p * (1 - p)) == pytest.approx(-weights * p, rel=1e-12)


def test_hidden_wash_z__refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match="weights must be at least 1"):
        hidden_wash_z(0, 0.1)
    with pytest.raises(ValueError, match="flip_probability must be in"):
        hidden_wash_z(5, 1.0)


@given(st.floats(1e-4, 0.1), st.floats(0.05, 1))
def test_concentrated_cosine__is_a_power_law_below_a_step(rms: float, share: float) -> None:
    if rms / math.sqrt(share) <= 1:
        whole = concentrated_cosine(rms, 1.0, 1.0)
        assert concentrated_cosine(rms, share, 1.0) == pytest.approx(whole * share**-0.25, rel=1e-12)
    assert needed_share(rms, concentrated_cosine(rms, 1.0, 1.0) * (1 - 1e-12), 1.0) == pytest.approx(1.0, rel=1e-10)


def test_concentrated_cosine__saturates_and_dips() -> None:
    """The power law has an end (`theory/README.md#t9`): at rho* = (rms / step)^2 the cosine is 1, then it oscillates."""
    rms = 0.01
    assert concentrated_cosine(rms, rms**2, 1.0) == pytest.approx(1.0)
    shares = rms**2 / np.linspace(1, 4, 301) ** 2
    beyond = [concentrated_cosine(rms, float(s), 1.0) for s in shares]
    assert max(beyond) <= 1 + ROUNDINGS
    assert min(beyond) == pytest.approx(math.sqrt(8 / 9), rel=1e-4)
    assert concentrated_cosine(rms, rms**2 / (4 / 3) ** 2, 1.0) == pytest.approx(math.sqrt(8 / 9))
    assert needed_share(rms, 0.5, 1.0) == pytest.approx(rms**2 * 16)


BLOCKS = 2**14


@pytest.mark.parametrize("density", ["gaussian", "laplace"])
@pytest.mark.parametrize("name", ["int4-g64", "nf4-b64", "fp4-b64"])
def test_follower_ratio__is_the_energy_of_unmoved_weights(name: str, density: str) -> None:
    """Updates of 0.02 standard deviations on 2 % of the weights and on each absmax, grids made anew.

    The share of blocks whose absmax moves is a factor of its own. First order: of the half of the blocks whose absmax shrinks, those where another entry overtakes follow less.
    """
    fmt, law_of = format_named(name), density_named(density, 1.0)
    share, size = 0.02, 0.02
    law = absmax_law(law_of, 64)
    rng = rng_for("followers", name, density)
    w = law_of.magnitude_above(rng.uniform(size=(BLOCKS, 64))) * rng.choice([-1.0, 1.0], (BLOCKS, 64))
    moved = rng.uniform(size=w.shape) < share
    moved[np.arange(BLOCKS), np.abs(w).argmax(axis=1)] = True
    delta = np.where(moved, size * rng.choice([-1.0, 1.0], w.shape), 0.0)
    w32, new32 = w.astype(np.float32), (w + delta).astype(np.float32)
    energy = np.square(round_trip(new32, fmt).astype(np.float64) - round_trip(w32, fmt))
    unmoved = np.where(moved, 0.0, energy).sum(axis=1)
    shapes = np.array([energy_density(fmt, law_of, a) for a in law.values])
    one = size * float(law.weights @ shapes)  # of one moved weight
    expected = 63 * (1 - share) * one * follower_ratio(fmt, law_of, law)
    error = unmoved.std(ddof=1) / math.sqrt(BLOCKS)
    first_order = overtaking_probability(law_of, law, size) / 2
    assert SIGMAS * error < expected / 8  # or the comparison would say nothing
    assert abs(unmoved.mean() - expected) <= SIGMAS * error + first_order * expected


def test_follower_ratio__of_a_uniform_grid_is_the_mean_of_the_others() -> None:
    """A Riemann sum over 254 thresholds of weights that are not all beyond the first: second order in their spacing."""
    second_order = 16 / 127**2
    for law_of, mean in (
        (Gaussian(0.02), 0.02 * math.sqrt(2 / math.pi)),
        (density_named("laplace", 0.02), 0.02 / math.sqrt(2)),
    ):
        got = follower_ratio(format_named("int8-g64"), law_of, absmax_law(law_of, 64))
        want = (64 * mean / expected_absmax(law_of, 64) - 1) / 63
        assert got == pytest.approx(want, rel=second_order, abs=0)


def test_concentrated_cosine__is_lower_on_a_grid_that_follows() -> None:
    fixed = concentrated_cosine(0.01, 0.04, 1.0)
    assert concentrated_cosine(0.01, 0.04, 1.0, 0.3) == pytest.approx(fixed / math.sqrt(1 + 0.96 * 0.3), rel=ROUNDINGS)
    assert concentrated_cosine(0.01, 1.0, 1.0, 0.3) == concentrated_cosine(0.01, 1.0, 1.0)
    for bad in (-0.1, math.inf):
        with pytest.raises(ValueError, match="followers must be finite"):
            concentrated_cosine(0.01, 0.5, 1.0, bad)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0.0, 0.5, 1.0), "rms"), ((0.1, 0.0, 1.0), "share"), ((0.1, 1.5, 1.0), "share"), ((0.1, 0.5, 0.0), "step")],
)
def test_concentrated_cosine__refuses_bad_arguments(arguments: tuple[float, float, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"{message} must be"):
        concentrated_cosine(*arguments)


def test_needed_share__refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match="cosine must be in"):
        needed_share(0.1, 0.0, 1.0)
    with pytest.raises(ValueError, match="rms must be"):
        needed_share(-0.1, 0.5, 1.0)


@pytest.mark.parametrize("density", sorted(DENSITIES))
@pytest.mark.parametrize("bits", [4, 8])
def test_flip_rate__is_the_rate_of_uniform_places(density: str, bits: int) -> None:
    """Under U, and at an update below the smallest step of every block drawn."""
    size, f = 64, density_named(density, 1.0)
    blocks = TRIALS
    u = rng_for(density, bits).uniform(size=(blocks, 2))
    absmax = f.magnitude_above(-np.expm1(np.log(u[:, 0]) / size))
    step = absmax / steps_per_absmax(bits)
    delta = float(step.min()) / 2
    flipped = np.floor(u[:, 1] + delta / step) > 0
    rate = flip_rate(delta, bits, f, size)
    assert rate > 2 * hoeffding_radius(blocks)  # or the comparison would say nothing
    assert_mean(flipped, rate)


def test_flip_ratio__of_int8_to_int4_is_127_to_7() -> None:
    f = Gaussian(0.02)
    assert flip_ratio(8, 4) == 127 / 7
    assert flip_rate(1e-6, 8, f, 64) / flip_rate(1e-6, 4, f, 64) == pytest.approx(127 / 7)
    assert flip_rate(1e-6, 4, f, 64) / flip_rate(1e-6, 4, f, 4096) == pytest.approx(
        expected_inverse_absmax(f, 64) / expected_inverse_absmax(f, 4096)
    )
    for bits in (1, 9):
        with pytest.raises(ValueError, match="bits must be in"):
            flip_ratio(bits, 4)
