from __future__ import annotations

import math
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from unforgotten.audit.weights.leg import gain_stderr
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import to_blocks
from unforgotten.theory.geometry.dead_zone import SIGNIFICANT_BITS, SMALLEST_NORMAL_EXPONENT, frozen_exponent
from unforgotten.theory.geometry.motion import (
    expected_displacement,
    free_radius,
    movable_edge,
    rounded_velocity,
    shells,
    step_law,
)
from unforgotten.theory.geometry.motion_fit import MOVE_NODES, Moves, observed_moves, stationary_fit, step_ratio
from unforgotten.theory.laws.absmax import AbsmaxLaw, absmax_law, observed_absmax
from unforgotten.theory.laws.boundary import levels_moved, shape_of
from unforgotten.theory.laws.densities import Gaussian, empirical
from unforgotten.theory.laws.predict import pieces, predict, predict_moves
from unforgotten.theory.laws.update import survival
from unforgotten.verification.chance import assert_mean, rng_for

ROUNDINGS = 64 * 2.0**-53
STD, ROWS, COLUMNS = 0.02, 128, 256
NAMES = ("int4-g64", "int4-row", "nf4-b64", "fp4-b64", "int8-row")
STATED_GAIN = 0.1  # the accuracy asked of a prediction of the gain
STATED_COSINE = 0.05
Z = 6.5  # two-sided normal quantile of 1e-10
lrs = st.floats(2.0**-20, 2.0**-8)


def to_float32(x: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(x, np.float32)


def to_bfloat16(x: NDArray[Any]) -> NDArray[Any]:
    """Round float32 to nearest, ties to even, by its bits."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + (((bits >> 16) & 1) + 0x7FFF)) & np.uint32(0xFFFF0000)).view(np.float32)


class Trained(NamedTuple):
    before: NDArray[Any]
    after: NDArray[Any]


def train(snr: float, lr: float, steps: int, *, bfloat16: bool, rows: int = ROWS) -> Trained:
    """AdamW on gradients mu + xi, mu / sigma ~ N(0, snr^2); weights rounded after each step, states in float64."""
    rng = rng_for(snr, lr, steps, bfloat16)
    store = to_bfloat16 if bfloat16 else to_float32
    w = store((STD * rng.standard_normal((rows, COLUMNS))).astype(np.float32))
    mean = rng.choice([-1.0, 1.0], w.shape) if math.isinf(snr) else snr * rng.standard_normal(w.shape)
    noise = 0.0 if math.isinf(snr) else 1.0
    before, m, v = w, np.zeros(w.shape), np.zeros(w.shape)
    for t in range(1, steps + 1):
        g = mean + noise * rng.standard_normal(w.shape)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        step = lr * (m / (1 - 0.9**t)) / np.sqrt(v / (1 - 0.999**t))
        w = store((w - step).astype(np.float32))
    return Trained(before, w)


@given(st.floats(-1, 1), st.floats(0.05, 0.5), st.floats(0.25, 16))
def test_rounded_velocity__is_the_mean_of_rounded_steps(drift: float, noise: float, lr: float) -> None:
    """Spacing 1. Steps beyond 41 spacings have probability below 1e-14 here."""
    steps = np.rint(lr * (drift + noise * rng_for(drift, noise, lr).standard_normal(20_000)))
    largest = 82.0
    expected = float(rounded_velocity(drift, noise, lr, 1.0))
    assert_mean(np.clip(steps / largest + 0.5, 0, 1), expected / largest + 0.5)


@given(st.floats(0.01, 1), st.floats(0.25, 8))
def test_rounded_velocity__is_all_or_nothing_without_noise(drift: float, lr: float) -> None:
    assert float(rounded_velocity(drift, 0.0, lr, 1.0)) == round(drift * lr)
    assert float(rounded_velocity(drift, 0.5, lr, 1.0)) == pytest.approx(
        -float(rounded_velocity(-drift, 0.5, lr, 1.0)), rel=ROUNDINGS, abs=ROUNDINGS
    )


@given(lrs, st.integers(1, 1000), st.sampled_from(sorted(SIGNIFICANT_BITS)))
def test_movable_edge__is_the_frozen_exponent_of_the_nominal_law(lr: float, steps: int, dtype: str) -> None:
    edge = movable_edge(step_law("adamw"), lr=lr, steps=steps, dtype=dtype)
    tie = math.frexp(lr)[0] == 0.5  # lr is half a spacing: to even, here down
    exponent = frozen_exponent(lr, dtype) - tie
    stands = exponent <= SMALLEST_NORMAL_EXPONENT[dtype]  # below half the subnormal spacing
    assert edge == (0.0 if stands else math.ldexp(1.0, exponent))
    assert movable_edge(step_law("sign"), lr=lr, steps=steps, dtype=dtype) == edge


def test_movable_edge__is_0_where_nothing_moves() -> None:
    """Half of float16's smallest spacing is 2^-25."""
    law = step_law("adamw")
    assert movable_edge(law, lr=2.0**-26, steps=10, dtype="float16") == 0
    w = np.array([0.0, 2.0**-24, 1.0])
    still = expected_displacement(w, law, 0, lr=2.0**-26, steps=10, dtype="float16")
    assert (still == 0).all()
    assert free_radius(2.0**-26, "float16") == 0


@pytest.mark.parametrize("optimizer", ["adamw", "sign"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_expected_displacement__nominal_walk(optimizer: str, dtype: str) -> None:
    """A walk of certain steps, one at a time: rounded where it stands, stopped where half a spacing is larger."""
    lr, steps, law = 1e-4, 40, step_law(optimizer)
    w = np.linspace(-0.2, 0.2, 201)
    moved = expected_displacement(w, law, 1, lr=lr, steps=steps, dtype=dtype)
    bits = {"bfloat16": 8, "float16": 11}[dtype]
    x = w.copy()
    for _ in range(steps):
        exponent = np.frexp(np.abs(x) + 1e-300)[1]
        ulp = np.ldexp(1.0, np.maximum(exponent - bits, -24 if bits == 11 else -140))
        x = x + np.where(ulp <= lr / 16, lr, ulp * np.rint(lr / ulp))
    largest_step = 2 * lr  # the walk may cross a binade's end by part of a step
    assert np.abs(moved - (x - w)).max() <= largest_step + steps * lr / 32
    edge = movable_edge(law, lr=lr, steps=steps, dtype=dtype)
    assert (moved[np.abs(w) >= edge] == 0).all()
    assert (np.abs(w + moved) <= np.maximum(np.abs(w), edge)).all()


@given(lrs, st.integers(0, 500), st.floats(0.1, 10))
def test_expected_displacement__is_lr_times_steps_in_exact_storage(lr: float, steps: int, snr: float) -> None:
    law = step_law("adamw", snr)
    w = np.linspace(-0.1, 0.1, 11)
    for node in (0, 7, 15):
        moved = expected_displacement(w, law, node, lr=lr, steps=steps, dtype="float32")
        exact = lr * steps * law.drift[node]
        slack = abs(exact) / 16 + ROUNDINGS  # float32 is coarse for the smallest lr: within FREE_SPACINGS
        assert np.abs(moved - exact).max() <= slack


def test_expected_displacement__sees_the_noise() -> None:
    """A drift below half a spacing moves only through noise: more of it, further."""
    law = step_law("adamw", 0.5)
    w = np.array([0.003])  # half a spacing is 0.76 lr
    at = int(np.argmin(np.abs(law.drift - 0.5)))
    moves = [
        float(expected_displacement(w, law._replace(noise=np.full(16, q)), at, lr=1e-5, steps=200, dtype="bfloat16")[0])
        for q in (0.05, 0.2, 0.4)
    ]
    assert 0 <= moves[0] < moves[1] < moves[2]


@pytest.mark.parametrize("optimizer", ["adamw", "sign"])
def test_step_law__ratio_grows_with_the_signal(optimizer: str) -> None:
    ratios = [step_law(optimizer, s).ratio for s in (0.01, 0.5, 2.0, 50.0)]
    assert ratios == sorted(ratios)
    assert ratios[-1] <= 1 == step_law(optimizer).ratio
    assert shells(step_law(optimizer, 1.0), 0, 1e-5, 10, "bfloat16").edges.size > 0


def test_motion__refuses_bad_arguments() -> None:
    law, w = step_law("adamw"), np.zeros(1)
    with pytest.raises(ValueError, match="optimizer must be one of"):
        step_law("muon")
    with pytest.raises(ValueError, match="snr must be positive"):
        step_law("adamw", 0.0)
    for lr, steps, dtype, rule in (
        (0.0, 1, "bfloat16", "lr"),
        (1e-5, -1, "bfloat16", "steps"),
        (1e-5, 1, "int8", "dtype"),
    ):
        with pytest.raises(ValueError, match=f"{rule} must be"):
            expected_displacement(w, law, 0, lr=lr, steps=steps, dtype=dtype)
    with pytest.raises(ValueError, match="must move freely"):
        step_ratio(w, w, lr=1e-5, steps=1, dtype="bfloat16")


CASES = [
    (math.inf, 1e-5, 200, True),
    (1.0, 1e-5, 200, True),
    (0.5, 1e-5, 200, True),
    (0.5, 3e-5, 200, True),
    (1.0, 1e-4, 60, True),
    (1.0, 1e-5, 60, False),
]


@pytest.mark.parametrize(("snr", "lr", "steps", "bfloat16"), CASES)
def test_predict__meets_simulated_training(snr: float, lr: float, steps: int, bfloat16: bool) -> None:
    """From std, lr, steps and dtype (and the simulation's own snr) alone: the gain within 0.1, the cosine within 0.05."""
    pair = train(snr, lr, steps, bfloat16=bfloat16)
    law, density = step_law("adamw", snr), Gaussian(STD)
    dtype = "bfloat16" if bfloat16 else "float32"
    for name in NAMES:
        fmt = format_named(name)
        absmax = absmax_law(density, fmt.block_size or COLUMNS, spacing=1.0)
        p = predict(fmt, density, absmax, law, lr=lr, steps=steps, dtype=dtype)
        seen = survival(pair.before, pair.after, fmt, "adaptive")
        assert p.expected.gain == pytest.approx(seen.gain, abs=STATED_GAIN), name
        assert p.expected.cosine == pytest.approx(seen.cosine, abs=STATED_COSINE), name


def test_predict__tells_the_storages_apart() -> None:
    """The swallowed update, and its cure: INT4 rows keep less than a quarter in bfloat16, all of it in float32."""
    fmt, density, law = format_named("int4-row"), Gaussian(STD), step_law("adamw")
    absmax = absmax_law(density, COLUMNS)
    coarse, fine = (predict(fmt, density, absmax, law, lr=1e-5, steps=200, dtype=d) for d in ("bfloat16", "float32"))
    assert coarse.expected.gain < 0.25
    assert fine.expected.gain > 0.95
    assert coarse.edge == 2.0**-8
    assert math.isinf(fine.edge)
    assert 0.1 < coarse.moved < 0.2 < fine.moved == 1.0
    still = predict(fmt, density, absmax, law, lr=1e-5, steps=0, dtype="float32")
    assert still.moved == 0
    assert math.isnan(still.expected.gain)
    assert still.expected == (0, 0, 0, 0, 0)


@given(st.integers(-30, 10), st.integers(-30, 10), st.floats(1e-3, 1e3))
def test_pieces__cover_the_movable_weights_once(inner: int, outer: int, std: float) -> None:
    """The ends of binades are powers of two."""
    radius, edge = math.ldexp(1.0, inner), math.ldexp(1.0, outer)
    low, high = pieces(radius, edge, Gaussian(std))
    assert (high > low).all()
    assert (low[1:] == high[:-1]).all()
    assert low[0] == -high[-1]
    reach = 2.0 ** math.ceil(math.log2(std) + 6)  # no normal weight is beyond
    assert high[-1] == min(edge, reach)


def test_step_ratio__and_the_fit_recover_the_signal() -> None:
    """|delta| / (lr T) of the free weights is the rms drift; the noise adds 1 / T of its long-run variance 1."""
    snr, steps = 0.5, 200
    pair = train(snr, 3e-5, steps, bfloat16=True)
    delta = pair.after - pair.before
    free = int((np.abs(pair.before) < free_radius(3e-5, "bfloat16")).sum())
    ratio = step_ratio(pair.before, delta, lr=3e-5, steps=steps, dtype="bfloat16")
    expected = math.sqrt(step_law("adamw", snr).ratio ** 2 + 1 / steps)
    stderr = math.sqrt(2 / (4 * free))  # of an rms, relative, at the kurtosis of a normal: drifts have less
    assert ratio == pytest.approx(expected, rel=Z * stderr)
    assert stationary_fit(step_law("adamw", snr).ratio).ratio == pytest.approx(step_law("adamw", snr).ratio, rel=1e-9)
    assert stationary_fit(1.0).ratio == 1.0


def test_stationary_fit__finds_a_noise_at_the_end_of_its_range() -> None:
    """A thousandth of the drift: the ratio is 2e-6 below that of no noise, and known to 1e-9."""
    ratio = step_law("adamw", 999.9).ratio
    assert stationary_fit(ratio).ratio == pytest.approx(ratio, rel=1e-9)
    assert ratio < 1 - 1e-6


@pytest.mark.parametrize("snr", [math.inf, 0.5])
def test_predict_moves__meets_simulated_training(snr: float) -> None:
    """With the motion known, the weights' histogram and the blocks' absmax give gain and cosine.

    The gain is a sample's: few codes flip, so its standard error is up to a fiftieth here.
    """
    pair = train(snr, 1e-5, 200, bfloat16=True, rows=4 * ROWS)
    moves = observed_moves(pair.before, pair.after - pair.before)
    for name in NAMES:
        fmt = format_named(name)
        blocks = to_blocks(pair.before, fmt)
        absmax = observed_absmax(np.abs(blocks).max(axis=1), blocks.shape[1])
        e = predict_moves(fmt, empirical(pair.before, 256), absmax, moves)
        seen = survival(pair.before, pair.after, fmt, "adaptive")
        assert abs(e.gain - seen.gain) <= STATED_GAIN + Z * gain_stderr([seen]), name
        assert e.delta_sq == pytest.approx(seen.delta_sq / seen.weights, rel=0.05), name


def test_movable_edge__is_that_of_the_drift_that_gets_furthest() -> None:
    """AdamW at a signal-to-noise of 1/2, 20 steps: just inside the edge weights of some drift move, at the edge of none."""
    law = step_law("adamw", 0.5)
    edge = movable_edge(law, lr=1e-5, steps=20, dtype="bfloat16")
    w = np.array([edge * (1 - 2.0**-8), edge])
    moved = np.array(
        [
            expected_displacement(w, law, node, lr=1e-5, steps=20, dtype="bfloat16") != 0
            for node in range(len(law.drift))
        ]
    )
    assert moved.any(axis=0).tolist() == [True, False]
    assert not moved[:, 0].all()


@pytest.mark.parametrize(("lr", "crosses_one_at_most"), [(1e-6, True), (1e-2, False)])
def test_predict__counts_a_weight_that_crosses_many_levels_once(lr: float, crosses_one_at_most: bool) -> None:
    """Flips are shares of weights; levels are not. INT8 in float32, one step: far below a level, and far above."""
    density, fmt = Gaussian(STD), format_named("int8-row")
    absmax = absmax_law(density, COLUMNS)
    p = predict(fmt, density, absmax, step_law("adamw"), lr=lr, steps=1, dtype="float32").expected
    assert 0 < p.flips <= 1 + ROUNDINGS
    assert (p.levels <= p.flips * (1 + ROUNDINGS)) == crosses_one_at_most


@pytest.mark.parametrize("levels", [0.25, 1.0, 3.5])
def test_predict_moves__of_a_fine_grid_counts_its_thresholds(levels: float) -> None:
    """Half the weights move up by a number of steps of INT8: they cross what T6 says, and flip unless they are at the last level."""
    density, fmt, absmax = Gaussian(STD), format_named("int8-row"), 4 * STD
    delta = levels * absmax / fmt.divisor
    moves = Moves(np.array([-absmax]), np.array([absmax]), np.array([delta]), np.array([0.5]))
    got = predict_moves(fmt, density, AbsmaxLaw(np.array([absmax]), np.array([1.0]), COLUMNS), moves)
    crossed = levels_moved(fmt, density, absmax, delta)
    last = shape_of(fmt).thresholds[-1] * absmax
    below = float((density.cdf(last) - density.cdf(-absmax)) / (density.cdf(absmax) - density.cdf(-absmax)))
    assert got.levels == pytest.approx(crossed / 2, rel=ROUNDINGS)
    assert got.flips == pytest.approx(min(crossed, below) / 2, rel=ROUNDINGS)


def test_observed_moves__keeps_few_groups_of_one_interval() -> None:
    """A thousand weights of one quarter binade, all with motions of their own: MOVE_NODES means, not a thousand."""
    w = np.full(1_000, 1.125)
    moves = observed_moves(w, np.arange(1.0, 1_001.0))
    assert len(moves.delta) == MOVE_NODES
    assert moves.share.sum() == pytest.approx(1, rel=ROUNDINGS)
    assert moves.delta @ moves.share == pytest.approx(500.5, rel=ROUNDINGS)
