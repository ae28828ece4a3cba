"""The laws against simulation, with both errors stated: a right law passes, a law that is 1 or 2 per cent wrong cannot.

Each sample grows until Bernstein's inequality, with the variance that it shows, resolves half the error, so that a
law that is off by FLIP_ERROR of a rate of flips, or by GAIN_ERROR of a gain, an energy or a variance, fails with
probability 1 - FALSE_ALARM at least, and a right one with FALSE_ALARM at most. Every claim of kind "law" is here, or
is in NOT_A_RATE with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from unforgotten.theory.claims import load_claims
from unforgotten.theory.formats.gptq import GptqRule, inverse_factor, round_columns
from unforgotten.theory.formats.group_grids import GroupGrid
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import Grid, decode, encode, fit_grid
from unforgotten.theory.geometry.cells import cells
from unforgotten.theory.geometry.motion import rounded_velocity
from unforgotten.theory.laws.absmax import absmax_law, magnitude_cdf
from unforgotten.theory.laws.block_law import block_law
from unforgotten.theory.laws.boundary import levels_moved, shape_of
from unforgotten.theory.laws.concentration import concentrated_cosine
from unforgotten.theory.laws.densities import Gaussian
from unforgotten.theory.laws.energy import expected_cosine, gated_energy
from unforgotten.theory.laws.flips import flip_probability
from unforgotten.theory.laws.gating import gated_mean, gated_variance
from unforgotten.theory.laws.regimes import hidden_energy_upper_bound, on_grid_gain, on_grid_survivor
from unforgotten.theory.laws.scaling import flip_rate, flip_ratio, steps_per_absmax
from unforgotten.theory.laws.wash import wash_test
from unforgotten.theory.models.lattice import pushed_shift, sequential_flip_probability, sequential_loss_variance, skew
from unforgotten.theory.models.response import linear_response
from unforgotten.verification.chance import FALSE_ALARM, bernstein_radius, rng_for

FLIP_ERROR, GAIN_ERROR = 0.01, 0.02
CHUNK = 250_000
LOOKS = 64

Array = NDArray[Any]
Draw = Callable[[np.random.Generator, int], Array]


class Law(NamedTuple):
    """Samples of a mechanism in [0, 1], the mean that a law gives them, and the error that must be seen."""

    draw: Draw
    expected: float
    error: float
    slack: float = 0.0  # of float32 and of the law's own quadrature


class Seen(NamedTuple):
    """A mean, and how far from its expectation it can be by chance."""

    mean: float
    radius: float


def simulate(name: str, law: Law) -> Seen:
    """Chunks until the radius is half the error. Each of at most LOOKS looks has its share of the false alarm."""
    wanted = law.error * law.expected / 2 - law.slack
    total = square = 0.0
    trials = 0
    for look in range(LOOKS):
        x = law.draw(rng_for("power", name, look), CHUNK)
        assert x.min() >= 0
        assert x.max() <= 1
        trials += x.size
        total, square = total + float(x.sum()), square + float(np.square(x).sum())
        mean = total / trials
        variance = max(0.0, (square - trials * mean**2) / (trials - 1))
        radius = bernstein_radius(variance, trials, looks=LOOKS)
        if radius <= wanted:
            return Seen(mean, radius)
    raise AssertionError(f"{trials} trials do not resolve {law.error} to {wanted}")


def unit_grid(name: str) -> Grid:
    fmt = format_named(name)
    scale = fmt.divisor if fmt.arithmetic == "multiply" else 1.0
    return Grid(np.full((1, 1), scale, np.float32), np.zeros((1, 1), np.float32))


def flip_of_a_cell(name: str, code: int, share: float) -> Law:
    """T6: weights at uniform places of one cell, through the kernel."""
    fmt = format_named(name)
    cell, grid = cells(fmt), unit_grid(name)
    lower, width = cell.lower[code], cell.width[code]
    shift = share * width

    def draw(rng: np.random.Generator, n: int) -> Array:
        v = lower + rng.uniform(size=n) * width
        before, after = (encode(x.astype(np.float32)[None], grid, fmt)[0] for x in (v, v + shift))
        return np.asarray(before != after, np.float64)

    expected = float(flip_probability(np.array([shift]), np.array([code]), fmt)[0])
    ends = max(abs(lower), abs(cell.upper[code]))
    return Law(draw, expected, FLIP_ERROR, slack=2.0**-23 * (2 * ends + shift) / width)


def uniform_steps(size: float, of: Callable[[Array], Array], expected: float) -> Law:
    """T7, T8: floor(u + size) steps of 1, for u uniform."""
    return Law(lambda rng, n: of(np.floor(rng.uniform(size=n) + size)), expected, GAIN_ERROR)


def moved_levels() -> Law:
    """T6 for a Gaussian density, int4 on a fixed grid, updates below a step: 0 or 1 level."""
    fmt, law, absmax = format_named("int4-g64"), Gaussian(1.0), 2.5
    thresholds = absmax * shape_of(fmt).thresholds
    inside, delta = float(magnitude_cdf(absmax, law)), 0.9 * 2.5 / 7

    def draw(rng: np.random.Generator, n: int) -> Array:
        w = law.quantile((1 - inside) / 2 + rng.uniform(size=n) * inside)
        return np.searchsorted(thresholds, w + delta) - np.searchsorted(thresholds, w) * 1.0

    return Law(draw, levels_moved(fmt, law, absmax, delta), FLIP_ERROR, slack=1e-9)


def whole_blocks(of: str) -> Law:
    """T6–T8 through the whole kernel: absmax blocks of 64 Gaussian weights, fixed grid, means over blocks."""
    fmt, size, scale, rows = format_named("int4-g64"), 64, 0.1, 6_000
    law = absmax_law(Gaussian(1.0), size)
    e = block_law(fmt, Gaussian(1.0), law, scale, "fixed")
    largest = {"flips": 1.0, "gain": 8.0}[of]

    def draw(rng: np.random.Generator, n: int) -> Array:
        w = rng.standard_normal((rows, size)).astype(np.float32)
        moved = w + np.float32(scale) * rng.choice(np.array([-1, 1], np.float32), w.shape)
        grid = fit_grid(w, fmt)
        before, after = encode(w, grid, fmt), encode(moved, grid, fmt)
        if of == "flips":
            return np.asarray((before != after).mean(axis=1))
        d = decode(after, grid, fmt).astype(np.float64) - decode(before, grid, fmt)
        gain = (d * (moved.astype(np.float64) - w) / scale**2).mean(axis=1)
        return np.clip((gain + 1) / largest, 0, 1)

    expected = {"flips": e.flips, "gain": (e.gain + 1) / largest}[of]
    error = FLIP_ERROR if of == "flips" else GAIN_ERROR * e.gain / (e.gain + 1)
    # float32 misplaces 2^-16 of the weights; a gain outside [-1, 7] has probability below 1e-9, as 64 weights average
    return Law(draw, expected, error, slack=2.0**-14)


def blocks_of_any_absmax(bits: int) -> Law:
    """T10: the rate over blocks whose absmax is drawn too."""
    size, f, delta = 64, Gaussian(1.0), 0.9 * 1.2 / steps_per_absmax(bits)

    def draw(rng: np.random.Generator, n: int) -> Array:
        absmax = np.maximum(f.magnitude_above(-np.expm1(np.log(rng.uniform(size=n)) / size)), 1.2)
        return np.asarray(rng.uniform(size=n) + delta * steps_per_absmax(bits) / absmax >= 1, np.float64)

    # absmax of 64 normal weights is below 1.2 with probability 2e-7
    return Law(draw, flip_rate(delta, bits, f, size), FLIP_ERROR, slack=1e-6)


def gaussian_on_the_grid() -> Law:
    """T11a: requantized weights, Gaussian updates: D delta, of updates within 5 standard deviations."""
    largest = 30.0
    # E[D delta; |delta| > 5] < E[2 delta^2; |delta| > 5] < 3.2e-5

    def draw(rng: np.random.Generator, n: int) -> Array:
        delta = rng.standard_normal(n)
        kept = np.abs(delta) <= 5
        return np.clip(on_grid_survivor(delta, 1.0) * delta * kept / largest, 0, 1)

    return Law(draw, on_grid_gain(1.0, 1.0) / largest, GAIN_ERROR, slack=3.2e-5 / largest)


def farther_end() -> Law:
    """T11c: the largest update that flips nothing reaches the farther end of the cell."""

    def draw(rng: np.random.Generator, n: int) -> Array:
        u = rng.uniform(size=n)
        return np.square(np.maximum(u, 1 - u))

    return Law(draw, hidden_energy_upper_bound(1.0), GAIN_ERROR)


def response(of: str) -> Law:
    """T13: g·D of four weights on grids of their own."""
    g, step = np.array([1.0, 0.5, 2.0, 1.0]), np.array([1.0, 2.0, 0.5, 1.5])
    delta = np.array([0.4, 0.9, 0.3, 0.6])
    want, top = linear_response(g, delta, step), float(g @ step)

    def draw(rng: np.random.Generator, n: int) -> Array:
        d = step * np.floor(rng.uniform(size=(n, 4)) + delta / step)
        r = d @ g
        return r / top if of == "mean" else np.square(r - want.mean) / top**2

    return Law(draw, want.mean / top if of == "mean" else want.variance / top**2, GAIN_ERROR)


def lattice(of: str) -> Law:
    """T17: two correlated columns, nearest plane; the residuals are uniform on their cells."""
    h = np.array([[1.0, 0.6], [0.6, 1.0]])
    factor, step, delta = inverse_factor(h), np.array([1.0, 0.8]), np.array([0.5, 0.3])
    rule = GptqRule(bits=40, group_size=None)
    top = 4.0 * float(np.square(step / np.diag(factor)).sum())

    def draw(rng: np.random.Generator, n: int) -> Array:
        residual = rng.uniform(-0.5, 0.5, (n, 2)) * step
        w = np.linalg.solve(skew(factor), residual.T).T
        grid = GroupGrid(np.broadcast_to(step, w.shape), np.full(w.shape, 2.0**39))
        first, second = (round_columns(x, factor, rule, grid).values for x in (w, w + delta))
        d = second - first
        shift = pushed_shift(delta, d, factor)
        if of == "flips":
            p = sequential_flip_probability(shift[:, 1], step[1])
            return (np.asarray(d[:, 1] != 0, np.float64) - p + 1) / 2
        lost = delta - d
        norm_sq = np.einsum("ri,ij,rj->r", lost, h, lost)
        law = sequential_loss_variance(shift, step, factor)
        return (norm_sq - law) / top / 2 + 0.5

    # the law is a mean over the random shifts: what is 0 in the mean, against 1 per cent of the rate it stands for
    rate, loss = abs(delta[1]) / step[1], float(np.square(step / np.diag(factor)).sum()) / 8
    error = FLIP_ERROR * rate if of == "flips" else GAIN_ERROR * loss / top
    return Law(draw, 0.5, error, slack=1e-9)


def velocity() -> Law:
    """T5: steps N(0.7, 0.3^2) rounded to whole spacings, which lie in [-2, 4] but for 1e-16."""

    def draw(rng: np.random.Generator, n: int) -> Array:
        return np.clip((np.rint(0.7 + 0.3 * rng.standard_normal(n)) + 2) / 6, 0, 1)

    v = float(rounded_velocity(0.7, 0.3, 1.0, 1.0))
    return Law(draw, (v + 2) / 6, GAIN_ERROR * v / (v + 2))


def cosine_of(energy: float, size: float) -> float:
    """<D, delta> = delta^2 in the mean, so cos^2 = delta^2 / E[D^2]."""
    return size**2 / energy**2


LAWS: Mapping[str, Callable[[], Law]] = {
    "flip_probability, int4": lambda: flip_of_a_cell("int4-g64", 7, 0.5),
    "flip_probability, nf4": lambda: flip_of_a_cell("nf4-b64", 3, 0.5),
    "flip_probability, fp4": lambda: flip_of_a_cell("fp4-b64", 11, 0.5),
    "levels_moved": moved_levels,
    "block_law, flips": lambda: whole_blocks("flips"),
    "block_law, gain": lambda: whole_blocks("gain"),
    "gated_mean": lambda: uniform_steps(1.5, lambda k: k / 2, float(gated_mean(1.5, 1.0)) / 2),
    "gated_variance": lambda: uniform_steps(0.4, lambda k: np.square(k - 0.4), float(gated_variance(0.4, 1.0))),
    "gated_energy": lambda: uniform_steps(1.5, lambda k: k * k / 4, float(gated_energy(1.5, 1.0)) / 4),
    "expected_cosine": lambda: uniform_steps(
        0.4, lambda k: k * k, cosine_of(expected_cosine(np.full(9, 0.4), 1.0), 0.4)
    ),
    "concentrated_cosine": lambda: uniform_steps(
        0.4, lambda k: k * k, cosine_of(concentrated_cosine(0.2, 0.25, 1.0), 0.4)
    ),
    "flip_rate, 4 bits": lambda: blocks_of_any_absmax(4),
    "flip_rate, 8 bits": lambda: blocks_of_any_absmax(8),
    "on_grid_gain": gaussian_on_the_grid,
    "hidden_energy_upper_bound": farther_end,
    "linear_response, mean": lambda: response("mean"),
    "linear_response, variance": lambda: response("variance"),
    "sequential_flip_probability": lambda: lattice("flips"),
    "sequential_loss_variance": lambda: lattice("loss"),
    "rounded_velocity": velocity,
}
NOT_A_RATE: Mapping[str, str] = {
    "flip_ratio": "a quotient of two `flip_rate`s, tested below",
    "predict": "to a stated accuracy of 0.1 and 0.05, of a training that is simulated: test_motion",
    "hidden_wash_z": "the standardized 0 of `wash_test`, an identity: test_regimes",
    "wash_test": "a test itself: its power is tested below",
    "exact_wash_test": "the law of a sum, exact against rationals: test_wash",
    "false_discoveries": "an inequality, with its own power test: test_multiplicity",
    "response_variance_upper_bound": "an inequality: test_bulk_steps",
    "bernstein_tail_upper_bound": "an inequality, against exact tails: test_response",
    "bernstein_radius": "an inequality: test_response",
    "empirical_bernstein_radius": "an inequality, with its own power test: test_response",
    "effective_weights": "a quotient of sums, against every outcome: test_gating_certificate",
    "gating_share_tail_upper_bound": "an inequality, against every outcome: test_gating_certificate",
    "gating_share_upper_bound": "the inequality inverted: test_gating_certificate",
    "safe_step_lower_bound": "the inequality inverted: test_gating_certificate",
    "flip_probability_upper_bound": "an inequality, attained below the smallest cell: test_minimax",
    "fieller_interval": "a rate of misses with a bound of it, and its own power test: test_fieller",
}


@pytest.mark.parametrize("name", LAWS)
def test_power__a_right_law_passes_and_one_that_is_a_per_cent_wrong_does_not(name: str) -> None:
    law = LAWS[name]()
    seen = simulate(name, law)
    allowed = seen.radius + law.slack
    assert abs(seen.mean - law.expected) <= allowed
    for wrong in (law.expected * (1 - law.error), law.expected * (1 + law.error)):
        assert abs(seen.mean - wrong) > allowed
        assert 2 * allowed <= law.error * law.expected * (1 + 1e-9)  # so it could not have been otherwise


def test_power__covers_every_law() -> None:
    laws = {c.function.rpartition(".")[2] for c in load_claims().values() if c.kind == "law"}
    tested = {name.split(",")[0] for name in LAWS}
    assert laws <= tested | set(NOT_A_RATE)
    assert not tested & set(NOT_A_RATE)


def test_flip_ratio__is_that_of_the_rates() -> None:
    f = Gaussian(1.0)
    rates = [flip_rate(1e-4, bits, f, 64) for bits in (8, 4)]
    assert flip_ratio(8, 4) == pytest.approx(rates[0] / rates[1], rel=16 * 2.0**-53)


@pytest.mark.parametrize("wrong", [1 - FLIP_ERROR, 1 + FLIP_ERROR])
def test_wash_test__sees_one_per_cent_of_the_flips(wrong: float) -> None:
    """n weights of probability 1/4: Chernoff's p-value is below FALSE_ALARM at 1 per cent, twice over."""
    p, n = 0.25, 12_000_000
    expected, variance = n * p, n * p * (1 - p)
    rng = rng_for("wash power", wrong)
    assert wash_test(int(rng.binomial(n, p)), expected, variance, n).p >= FALSE_ALARM
    assert wash_test(int(rng.binomial(n, p * wrong)), expected, variance, n).p < FALSE_ALARM
    # the shift is two of Hoeffding-Chernoff's radii: P[KL(seen || p) too small] < FALSE_ALARM, by the same inequality
    radius = math.sqrt(2 * p * (1 - p) * math.log(2 / FALSE_ALARM) / n)
    assert 2 * radius < FLIP_ERROR * p
