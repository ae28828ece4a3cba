"""The jax laws are the numpy laws, and what a design equation returns has the gain and cosine that were wanted."""

# pyright: reportArgumentType=false
# gated_energy of a number is an array without axes.
from __future__ import annotations

import math
import subprocess
import sys
from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import integrate

from unforgotten.theory.calculators.design import (
    cosines,
    gain_slopes,
    gains,
    gaussian_cosine,
    largest_rank,
    largest_share,
    needed_rms,
    phase_diagram,
    smallest_lr,
)
from unforgotten.theory.calculators.traced import Setup, _moved, _pieces, energy, setup, sums
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.geometry.motion import expected_displacement, free_radius, movable_edge, step_law
from unforgotten.theory.laws.absmax import AbsmaxLaw, absmax_law
from unforgotten.theory.laws.boundary import moments
from unforgotten.theory.laws.concentration import needed_share
from unforgotten.theory.laws.densities import Gaussian
from unforgotten.theory.laws.energy import gated_energy
from unforgotten.theory.laws.predict import pieces, predict

U64 = 2.0**-53
STD, STEPS = 0.02, 100
PIECES, TERMS = (216, 2**16)  # intervals of w; terms of a sum over pieces, absmax nodes and thresholds, at most
LAW = AbsmaxLaw(STD * np.array([1.9, 2.5, 3.3]), np.array([0.25, 0.5, 0.25]), 64)
FORMATS = ("int2-g64", "int4-g64", "nf4-b64", "fp4-b64")


def made(name: str, dtype: str, steps: int = STEPS) -> Setup:
    return setup(format_named(name), LAW, std=STD, steps=steps, dtype=dtype)


def slack(size: float, largest: float) -> float:
    """Of a sum: one rounding a term, relative; and, absolute, what 8 roundings of a normal tail can do to each piece.

    A tail errs by at most 2 u in either library; four of them are subtracted, and each is weighed by `largest`.
    """
    return TERMS * U64 * abs(size) + 8 * U64 * PIECES * largest


LRS = (2e-6, 1e-5, 2.0**-17, 5 * 2.0**-18, 1e-4)
"""Two of them are half a spacing, or two and a half, of a binade of either dtype."""


@pytest.mark.parametrize("lr", LRS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_moved__is_the_displacement_of_the_nominal_law(lr: float, dtype: str) -> None:
    """At all powers of two around the edge, the edge itself and between, of both signs; times are divided in other orders."""
    law = step_law("adamw")
    upward = int(np.argmax(law.drift))
    edge = movable_edge(law, lr=lr, steps=STEPS, dtype=dtype)
    w = np.concatenate([edge * 2.0 ** np.arange(-12, 3), edge * np.array([0.999, 1.001, 0.7, 0.3])])
    w = np.concatenate([-w, [0.0], w])
    expected = expected_displacement(w, law, upward, lr=lr, steps=STEPS, dtype=dtype)
    with jax.enable_x64(True):
        moved, ours = _moved(jnp.asarray(w), jnp.asarray(lr), made("nf4-b64", dtype))
    assert float(ours) == edge
    assert np.asarray(moved) == pytest.approx(expected, rel=0, abs=64 * U64 * edge)


@pytest.mark.parametrize("lr", LRS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_pieces__are_those_of_predict(lr: float, dtype: str) -> None:
    with jax.enable_x64(True):
        low, high, _ = (np.asarray(x) for x in _pieces(jnp.asarray(lr), made("nf4-b64", dtype)))
    edge = movable_edge(step_law("adamw"), lr=lr, steps=STEPS, dtype=dtype)
    expected = pieces(free_radius(lr, dtype), edge, Gaussian(STD))
    there = low < high
    rounding = 4 * U64  # sixths of powers of two, each in two roundings or fewer in either library
    assert low[there] == pytest.approx(expected[0], rel=rounding)
    assert high[there] == pytest.approx(expected[1], rel=rounding)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.nightly)])
def test_sums__are_those_of_predict(name: str, dtype: str) -> None:
    s = made(name, dtype)
    lrs = np.array([2e-6, 1e-5, 3e-5, 1e-4])
    with jax.enable_x64(True):
        rows = np.transpose(jax.jit(jax.vmap(lambda lr: sums(lr, s)))(jnp.asarray(lrs)))
    for lr, ours in zip(lrs.tolist(), rows, strict=True):
        e = predict(format_named(name), Gaussian(STD), LAW, step_law("adamw"), lr=lr, steps=STEPS, dtype=dtype).expected
        reach, moved = (2 * LAW.values.max(), 2 * lr * STEPS)  # of D; of delta, whose velocity is below 2 lr
        bounds = (reach * moved, moved**2, reach**2)
        for own, other, largest in zip(ours, (e.dot, e.delta_sq, e.surviving_sq), bounds, strict=True):
            assert abs(own - other) <= slack(other, largest)
        assert ours[1] > 1e3 * slack(0.0, bounds[1])  # what moves is far above the slack


@pytest.mark.parametrize("name", ["int6-g64", "int8-g64"])
def test_sums__of_a_fine_grid_are_those_of_predict_below_a_step(name: str) -> None:
    """Where the edge lies inside of the cell at zero D is 0; beyond, |D| is 0 or a step. A velocity in bf16 is below 2 lr."""
    s, fmt = made(name, "bfloat16"), format_named(name)
    lrs = np.array([1e-3, 0.3, 0.49]) * LAW.values.min() / fmt.divisor / STEPS
    with jax.enable_x64(True):
        rows = np.transpose(jax.jit(jax.vmap(lambda lr: sums(lr, s)))(jnp.asarray(lrs)))
    squares = []
    for lr, ours in zip(lrs.tolist(), rows, strict=True):
        e = predict(fmt, Gaussian(STD), LAW, step_law("adamw"), lr=lr, steps=STEPS, dtype="bfloat16").expected
        reach = 2 * LAW.values.max()
        assert abs(ours[0] - e.dot) <= slack(e.dot, reach * 2 * lr * STEPS)
        assert abs(ours[2] - e.surviving_sq) <= slack(e.surviving_sq, reach**2)
        squares.append(e.surviving_sq)
    assert squares[0] == 0.0 < squares[-1]


@pytest.mark.parametrize("name", [*FORMATS, "int8-g64"])
def test_sums__are_exact_where_every_weight_moves(name: str) -> None:
    """float32: T6's exact moments of +-lr T. int8's energy is T8's, which knows no edge."""
    fmt, delta = format_named(name), 1e-5 * STEPS
    with jax.enable_x64(True):
        law = jax.jit(lambda lr: sums(lr, made(name, "float32")))
        ours = [float(x) for x in law(jnp.asarray(1e-5))]
    exact = [moments(fmt, Gaussian(STD), LAW.values, LAW.values, np.full(3, d)) for d in (delta, -delta)]
    reach = 2 * LAW.values.max()
    dot = sum(LAW.weights @ m.surviving * d for m, d in zip(exact, (delta, -delta), strict=True)) / 2
    square = sum(LAW.weights @ m.surviving_sq for m in exact) / 2
    assert abs(ours[0] - dot) <= slack(dot, reach * delta)
    assert abs(ours[1] - delta**2) <= slack(delta**2, delta**2)
    if name == "int8-g64":
        steps = LAW.values / 127
        square = LAW.weights @ (steps**2 * gated_energy(delta / steps, 1.0))
    assert abs(ours[2] - square) <= slack(square, reach**2)


@given(st.floats(1e-6, 1e3), st.floats(1e-3, 1e3))
def test_energy__is_gated_energy(delta: float, step: float) -> None:
    with jax.enable_x64(True):
        ours = float(energy(jnp.asarray(delta), step))
    expected = float(gated_energy(delta, step))
    assert abs(ours - expected) <= 8 * U64 * expected  # both round each of 6 operations on positive numbers


@pytest.mark.parametrize("rms", [0.01, 0.3, 1.0, 4.0, 7.9, 8.1, 30.0])
def test_gaussian_cosine__is_the_integral_of_t8(rms: float) -> None:
    """Step 1: quad over each [n, n + 1], where the integrand is smooth; 12 standard deviations hold all but 1e-30."""

    def density(x: float) -> float:
        return 2 * math.exp(-((x / rms) ** 2) / 2) / (rms * math.sqrt(2 * math.pi))

    square, error = 0.0, 0.0
    for n in range(math.ceil(12 * rms)):
        high = min(n + 1.0, n + 12 * rms)
        part, off = integrate.quad(lambda x: float(gated_energy(x, 1.0)) * density(x), n, high, epsabs=0, epsrel=1e-12)
        square, error = square + part, error + off
    cosine = float(gaussian_cosine(rms, 1.0))
    assert abs(cosine - rms / math.sqrt(square)) <= cosine * (error / square + 256 * U64)


def test_gain_slopes__are_the_difference_quotients_of_the_gain() -> None:
    """Two central differences give their own error: a third of their gap, but for h^4; rounding adds 16 u / h."""
    s, lrs, h = made("nf4-b64", "float32"), np.array([1e-5, 2e-5]), U64**0.25
    slopes = gain_slopes(lrs, s)
    fine, coarse = ((gains(lrs * (1 + x), s) - gains(lrs * (1 - x), s)) / (2 * x) for x in (h, 2 * h))
    error = np.abs(coarse - fine) + 16 * U64 / h
    assert (np.abs(slopes - fine) <= error).all()
    assert (np.abs(slopes) > 100 * error).all()


def test_gains__are_what_one_lr_alone_has() -> None:
    s, lrs = made("nf4-b64", "bfloat16"), np.array([1e-5, 3e-5])
    both = gains(lrs, s)
    for lr, gain, cosine in zip(lrs, both, cosines(lrs, s), strict=True):
        e = predict(
            format_named("nf4-b64"), Gaussian(STD), LAW, step_law("adamw"), lr=float(lr), steps=STEPS, dtype="bfloat16"
        ).expected
        assert gain == pytest.approx(e.gain, rel=4 * math.sqrt(U64))
        assert cosine == pytest.approx(e.cosine, rel=4 * math.sqrt(U64))


@pytest.mark.parametrize("wishes", [{"gain": 0.9}, {"gain": 0.5, "cosine": 0.3}])
def test_smallest_lr__meets_the_wish_and_no_smaller_one_does(wishes: dict[str, float]) -> None:
    """By the numpy law, a relative 1e-9 above and below, where the search left 2^-43."""
    fmt = format_named("int4-g64")
    lr = smallest_lr(made("int4-g64", "bfloat16"), **wishes)

    def met(x: float) -> bool:
        law = partial(predict, fmt, Gaussian(STD), LAW, step_law("adamw"), steps=STEPS)
        e = law(lr=x, dtype="bfloat16").expected
        return all(getattr(e, name) >= value for name, value in wishes.items())

    assert met(lr * (1 + 1e-9))
    assert not met(lr * (1 - 1e-9))


def test_smallest_lr__is_infinite_where_no_lr_will_do() -> None:
    assert smallest_lr(made("int2-g64", "bfloat16", steps=1), cosine=0.9999) == math.inf


@given(st.floats(0.01, 0.999), st.floats(1e-3, 1e3))
@settings(max_examples=20)
def test_needed_rms__has_the_cosine(cosine: float, step: float) -> None:
    reached = float(gaussian_cosine(needed_rms(cosine, step), step))
    assert abs(reached - cosine) <= 64 * U64 * 64  # 64 terms of the series, and Newton's last step


def test_needed_rms__is_the_power_law_far_below_a_step() -> None:
    """cosine^2 = sqrt(pi / 2) rms / step, but for exp(-1 / 2 rms^2) terms."""
    assert needed_rms(0.01, 2.0) == pytest.approx(1e-4 * 2 * math.sqrt(2 / math.pi), rel=256 * U64)


@given(st.floats(1e-4, 1e-1), st.floats(0.05, 0.9))
@settings(max_examples=20)
def test_largest_share__has_the_cosine_and_scales_as_t9(rms: float, cosine: float) -> None:
    share = largest_share(rms, cosine, 1.0)
    reached = float(gaussian_cosine(rms / math.sqrt(share), 1.0))
    assert reached >= cosine * (1 - 2**12 * U64)
    assert share == 1.0 or reached <= cosine * (1 + 2**12 * U64)
    # E|d| is rms sqrt(2 / pi) for a Gaussian and rms for equal entries; equal ones need more concentration
    if cosine < 0.3 and share < 1:  # far below a step the two laws differ by that constant alone
        assert needed_share(rms, cosine, 1.0) / share == pytest.approx(2 / math.pi, rel=1e-6)


def test_largest_rank__is_the_last_with_the_cosine() -> None:
    step, alpha, b, a = 0.005, 32.0, 1e-3, 0.02
    rank = largest_rank(0.2, step, alpha=alpha, b_moved=b, a_rms=a)
    rms = alpha * b * a / np.sqrt([rank, rank + 1])
    at, beyond = gaussian_cosine(rms, step)
    assert rank > 1
    assert at >= 0.2 > beyond


def test_largest_rank__is_about_entries_of_b_times_a() -> None:
    """The variance of an entry of alpha / r B A is exact: (alpha b a)^2 / r, by the sum over all signs of B."""
    a = np.array([0.3, -0.5, 0.4])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1)
    entries = 2.0 / 3 * 0.1 * (a @ signs)
    assert np.mean(entries**2) == pytest.approx((2.0 * 0.1) ** 2 * np.mean(a**2) / 3, rel=16 * U64)


def test_phase_diagram__shows_both_sides_of_the_edge() -> None:
    """C2: for int4-g64 at std 0.02 the edge passes the first threshold, 0.0034, between lr 5e-6 and 1e-5."""
    lrs = np.array([5e-6, 8e-6, 1e-4])
    diagram = phase_diagram(lrs / STD, ["int4-g64", "nf4-b64"], ["bfloat16", "float32"], std=STD, steps=STEPS)
    assert diagram.shape == (2, 2, 3)
    int4 = diagram[0, 0]
    assert int4[0] < 0.1
    assert int4[1] > 1.1
    assert np.abs(int4[2] - 1) < 0.1
    assert (np.abs(diagram[0, 1] - 1) < 0.6).all()  # NF4's first threshold lies well inside at all three
    assert (np.abs(diagram[1] - 1) < 0.1).all()  # float32: no dead zone


def test_phase_diagram__has_rows_of_weights_and_float8() -> None:
    """A float8 weight of ordinary size does not move at an ordinary lr: nan, not 0."""
    diagram = phase_diagram([5e-4], ["int4-row"], ["float8_e4m3fn"], std=STD, steps=1, columns=64)
    assert np.isnan(diagram).all()
    same = [
        phase_diagram([5e-4], [name], ["bfloat16"], std=STD, steps=1, columns=64) for name in ("int4-row", "int4-g64")
    ]
    assert np.array_equal(same[0], same[1])


def test_gains__need_positive_learning_rates() -> None:
    for lrs in ([0.0], [math.inf], 1e-5):
        with pytest.raises(ValueError, match="lrs must be a vector"):
            gains(lrs, made("int4-g64", "bfloat16"))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"std": 0.0}, "std must be positive"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"dtype": "int8"}, "dtype must be one of"),
    ],
)
def test_setup__refuses(change: dict[str, object], rule: str) -> None:
    given_ = {"std": STD, "steps": 1, "dtype": "bfloat16", **change}
    with pytest.raises(ValueError, match=rule):
        setup(format_named("int4-g64"), LAW, **given_)  # type: ignore[arg-type]


def test_design__refuses_what_cannot_be_wanted() -> None:
    s = made("int4-g64", "bfloat16")
    with pytest.raises(ValueError, match="must be wanted, got neither"):
        smallest_lr(s)
    with pytest.raises(ValueError, match="gain must be in"):
        smallest_lr(s, gain=1.0)
    with pytest.raises(ValueError, match="cosine must be in"):
        needed_rms(0.0, 1.0)
    with pytest.raises(ValueError, match="step must be positive"):
        needed_rms(0.5, 0.0)
    with pytest.raises(ValueError, match="rms must be positive"):
        largest_share(-1.0, 0.5, 1.0)
    with pytest.raises(ValueError, match="alpha must be positive"):
        largest_rank(0.5, 1.0, alpha=0.0, b_moved=1.0, a_rms=1.0)


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        ("import unforgotten.theory, sys; print('jax' in sys.modules)", "False"),
        ("import unforgotten.theory.calculators.design, jax; print(jax.config.jax_enable_x64)", "False"),
    ],
)
def test_design__changes_nothing_at_import(code: str, printed: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == printed


def test_absmax_law__of_a_diagram_is_the_bulk() -> None:
    """What LEAST_SHARE leaves out is below the quadrature's own 5e-5."""
    law = absmax_law(Gaussian(STD), 64, spacing=1.0)
    assert law.weights[law.weights <= 1e-7].sum() < 5e-5
