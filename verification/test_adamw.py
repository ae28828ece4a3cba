from __future__ import annotations

import math
from fractions import Fraction
from typing import Any
from unittest.mock import patch

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import mpmath
import numpy as np
import pytest
from hypothesis import example, given
from numpy.typing import NDArray

from unforgotten.theory.geometry.adamw import (
    RATIO_ROUNDINGS,
    STEPS_AT_MOST,
    adamw_displacement_upper_bound,
    adamw_limit_ratio,
    adamw_ratio_upper_bound,
    adamw_step_upper_bound,
    extremal_gradients,
    moment_ratios,
    ratios,
)
from unforgotten.verification.chance import rng_for
from unforgotten.verification.libm import numpy_toward_zero
from unforgotten.verification.oracles import U64

DIGITS = 60
beta1s = st.floats(0, 0.9999)
beta2s = st.floats(2.0**-10, 0.9999)
steps = st.integers(1, 400)


def exact_square(t: int, beta1: float, beta2: float) -> Fraction:
    """c_t^2 in rationals, from the sum of r^k and not from its closed form."""
    a, b = Fraction(beta1), Fraction(beta2)
    series = sum((Fraction(a * a / b) ** k for k in range(t)), Fraction(0))
    return (1 - b**t) / (1 - a**t) ** 2 * (1 - a) ** 2 / (1 - b) * series


def oracle(t: int, beta1: float, beta2: float) -> Any:
    """c_t with DIGITS digits."""
    a, b = mpmath.mpf(beta1), mpmath.mpf(beta2)
    r = a * a / b
    series = mpmath.fsum(r**k for k in range(t))
    return mpmath.sqrt((1 - b**t) * series / (1 - b)) * (1 - a) / (1 - a**t)


def adam_ratio(gradients: NDArray[Any], beta1: float, beta2: float, *, eps: float = 0.0) -> float:
    """|m^_t| / (sqrt(v^_t) + eps) by the recursion of the algorithm, float64."""
    m = v = 0.0
    for g in gradients.tolist():
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
    t = len(gradients)
    m, v = m / (1 - beta1**t), v / (1 - beta2**t)
    return abs(m) / (math.sqrt(v) + eps) if v else 0.0


def recursion_slack(t: int, beta1: float, beta2: float) -> float:
    """Relative error of `adam_ratio`: 3 roundings a step, in v undamped and in m relative to sum of |terms|.

    1 - beta is exact or rounded once, 1 - beta^t has t / (beta^-t - 1) <= 1 / (1 - beta) times the error of beta^t.
    """
    return U64 * (8 * t + 4 / (1 - beta1) + 4 / (1 - beta2) + 32)


def log_growth(t: int, beta1: float, beta2: float) -> float:
    """log r^t where it is positive: its relative rounding becomes an absolute one of r^t."""
    return max(t * (2 * math.log(beta1) - math.log(beta2)), 0.0) if beta1 else 0.0


def test_adamw_ratio_upper_bound__is_exact_at_first() -> None:
    """c_1 = 1 for every beta; c_2 by hand at beta1 = 1/2, beta2 = 1/4 (r = 1): sqrt(15/16)/(3/4) (1/2)/sqrt(3/4) sqrt 2."""
    assert exact_square(1, 0.9, 0.999) == 1
    assert exact_square(2, 0.5, 0.25) == Fraction(10, 9)
    slack = RATIO_ROUNDINGS * U64 * 2
    assert 1 <= adamw_ratio_upper_bound(1) <= 1 + slack
    by_hand = math.sqrt(10 / 9)
    assert by_hand <= adamw_ratio_upper_bound(2, 0.5, 0.25) <= by_hand * (1 + slack)


@given(steps, beta1s, beta2s)
@example(400, 0.9, 0.81)  # r near 1
@example(400, 0.9, 0.5)  # r > 1
@example(3, 0.0, 0.5)
@example(400, 0.9999, 2.0**-10)  # r^t overflows
def test_adamw_ratio_upper_bound__is_above_the_exact_value_and_near_it(t: int, beta1: float, beta2: float) -> None:
    with mpmath.workdps(DIGITS):
        exact = oracle(t, beta1, beta2)
        bound = adamw_ratio_upper_bound(t, beta1, beta2)
        growth = log_growth(t, beta1, beta2)
        if math.isinf(bound):
            assert growth > 700  # exp overflows
            return
        assert exact <= bound <= exact * (1 + 2 * (2 * RATIO_ROUNDINGS + 4 * growth) * U64)


@pytest.mark.parametrize("t", [1, 7, 60])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.875, 0.5), (0.0, 0.75)])
def test_adamw_ratio_upper_bound__oracle_agrees_with_rationals(t: int, betas: tuple[float, float]) -> None:
    with mpmath.workdps(DIGITS):
        square = exact_square(t, *betas)
        exact = mpmath.mpf(square.numerator) / square.denominator
        assert abs(oracle(t, *betas) ** 2 / exact - 1) < mpmath.mpf(10) ** (4 - DIGITS)


@pytest.mark.parametrize("t", [10**4, 10**6, 10**9])
def test_adamw_ratio_upper_bound__holds_for_many_steps(t: int) -> None:
    """The closed form by mpmath: sums of a billion powers are out of reach."""
    with mpmath.workdps(DIGITS):
        a, b = mpmath.mpf(0.9), mpmath.mpf(0.999)
        r = a * a / b
        exact = mpmath.sqrt((1 - b**t) * (1 - r**t) / (1 - r) / (1 - b)) * (1 - a) / (1 - a**t)
        assert exact <= adamw_ratio_upper_bound(t) <= exact * (1 + 4 * RATIO_ROUNDINGS * U64)


@given(beta1s, beta2s)
def test_adamw_ratio_upper_bound__never_falls_with_t(beta1: float, beta2: float) -> None:
    """So the last step of a run has the largest bound. Rounding aside, which is stated."""
    c = ratios(np.arange(1, 200), beta1, beta2)
    growth = log_growth(200, beta1, beta2)
    finite = c[np.isfinite(c)]
    slack = 2 * (2 * RATIO_ROUNDINGS + 4 * growth) * U64
    assert (finite[1:] >= finite[:-1] * (1 - slack)).all()


def test_adamw_step_upper_bound__refutes_the_folk_bound() -> None:
    """ "A step is at most lr": gradients that grow by 11 % a step make step 100 more than 2.2 lr."""
    growing = extremal_gradients(100)
    assert (growing[1:] > growing[:-1]).all()
    assert adam_ratio(growing, 0.9, 0.999) > 2.2
    assert adam_ratio(extremal_gradients(2_000), 0.9, 0.999) > 6.7


def test_adamw_step_upper_bound__folk_bound_fails_for_plain_histories() -> None:
    """No optimization: 1,000 quiet steps, then 10 steps of larger gradients of one sign move by 4 lr and more."""
    quiet_then_loud = np.concatenate([np.full(1000, 1e-3), np.full(10, 1.0)])
    assert adam_ratio(quiet_then_loud, 0.9, 0.999) > 4


def test_extremal_gradients__attain_the_bound_to_1e_12() -> None:
    """To 1e-12; the sums of m and v are done exactly rounded, by `math.fsum`."""
    for t in range(1, 1001):
        g = extremal_gradients(t)
        age = np.arange(t - 1, -1, -1.0)
        m = math.fsum(0.9**age * g) * (1 - 0.9) / (1 - 0.9**t)
        v = math.fsum(0.999**age * g * g) * (1 - 0.999) / (1 - 0.999**t)
        assert abs(m / math.sqrt(v) / adamw_ratio_upper_bound(t) - 1) <= 1e-12


@given(st.integers(1, 60), st.floats(0, 0.99), st.floats(0.05, 0.999))
def test_extremal_gradients__attain_the_bound_for_all_betas(t: int, beta1: float, beta2: float) -> None:
    g = extremal_gradients(t, beta1, beta2)
    assert g.shape == (t,)
    assert g.max() == 1
    # powers of a rounded quotient: a relative error of up to t u each; squares of 0.05^60 do not underflow
    slack = recursion_slack(t, beta1, beta2) + 8 * t * U64
    assert adam_ratio(g, beta1, beta2) >= adamw_ratio_upper_bound(t, beta1, beta2) * (1 - slack)


histories = hnp.arrays(
    np.float64, st.integers(1, 80), elements=st.floats(-1e6, 1e6).map(lambda x: x if abs(x) > 1e-6 else 0.0)
)


@given(histories, st.floats(0, 0.999), st.floats(0.01, 0.9999), st.sampled_from([0.0, 1e-8, 1.0]))
def test_adamw_step_upper_bound__bounds_every_history(
    gradients: NDArray[Any], beta1: float, beta2: float, eps: float
) -> None:
    t = len(gradients)
    bound = adamw_step_upper_bound(3e-4, t, beta1, beta2)
    step = 3e-4 * adam_ratio(gradients, beta1, beta2, eps=eps)
    assert step <= bound * (1 + recursion_slack(t, beta1, beta2))


@given(st.integers(1, 60), st.integers(0, 2**32), st.floats(-1, 1))
def test_adamw_step_upper_bound__is_a_maximum_along_every_direction(t: int, seed: int, size: float) -> None:
    """Any perturbation of the extremal gradients lowers the ratio: it is the maximum, not a saddle."""
    g = extremal_gradients(t)
    moved = g * (1 + size * rng_for("direction", t, seed).uniform(-1, 1, t))
    slack = recursion_slack(t, 0.9, 0.999) + 8 * t * U64
    assert adam_ratio(moved, 0.9, 0.999) <= adam_ratio(g, 0.9, 0.999) * (1 + slack)


@given(st.integers(1, 10**5), st.floats(0, 1), st.integers(-30, 30))
def test_adamw_step_upper_bound__scales_with_the_rate(t: int, lr: float, exponent: int) -> None:
    scaled = adamw_step_upper_bound(math.ldexp(lr, exponent), t)
    smallest = 2.0**-1000  # below it nextafter is no relative step
    assert abs(scaled - math.ldexp(adamw_step_upper_bound(lr, t), exponent)) <= 2 * U64 * scaled + smallest


@given(st.floats(0, 0.999), beta2s)
def test_adamw_limit_ratio__is_the_supremum(beta1: float, beta2: float) -> None:
    limit = adamw_limit_ratio(beta1, beta2)
    square = Fraction(beta1) ** 2 / Fraction(beta2)
    assert math.isinf(limit) == (square >= 1)
    if square < 1:
        exact = (1 - Fraction(beta1)) ** 2 / (1 - Fraction(beta2)) / (1 - square)
        assert exact <= Fraction(limit) ** 2 <= exact * (1 + 16 * Fraction(U64))
    for t in (1, 10, 1000):
        assert adamw_ratio_upper_bound(t, beta1, beta2) <= limit * (1 + 4 * RATIO_ROUNDINGS * U64)


def test_adamw_limit_ratio__is_7_27_at_the_defaults() -> None:
    """0.1 / sqrt(0.001 (1 - 0.81 / 0.999)), the digits by mpmath."""
    with mpmath.workdps(DIGITS):
        exact = mpmath.mpf("0.1") / mpmath.sqrt(mpmath.mpf("0.001") * (1 - mpmath.mpf("0.81") / mpmath.mpf("0.999")))
        # 1 - 0.999 as floats is 0.001 to 2^-53 / 0.001, relative
        assert abs(adamw_limit_ratio() / exact - 1) <= U64 / 0.001
        assert f"{float(exact):.2f}" == "7.27"


def run_adamw(w: float, gradients: NDArray[Any], rates: NDArray[Any], *, weight_decay: float) -> float:
    """AdamW as published, at eps = 0."""
    for t in range(1, len(gradients) + 1):
        g = gradients[:t]
        age = np.arange(t - 1, -1, -1.0)
        m = (1 - 0.9) * (0.9**age * g).sum() / (1 - 0.9**t)
        v = (1 - 0.999) * (0.999**age * g * g).sum() / (1 - 0.999**t)
        w = (1 - rates[t - 1] * weight_decay) * w - rates[t - 1] * (m / math.sqrt(v) if v else 0.0)
    return w


@given(histories, st.floats(-10, 10), st.floats(0, 10), st.integers(0, 100))
def test_adamw_displacement_upper_bound__bounds_every_run(
    gradients: NDArray[Any], w: float, weight_decay: float, seed: int
) -> None:
    rates = rng_for("rates", seed).uniform(0, 0.1, len(gradients))
    moved = abs(run_adamw(w, gradients, rates, weight_decay=weight_decay) - w)
    bound = adamw_displacement_upper_bound(
        rates.tolist(), len(gradients), weight_decay=weight_decay, largest_weight=abs(w)
    )
    t = len(gradients)
    # each step: its own recursion's error, and 4 roundings of a weight of size |w| + bound
    slack = recursion_slack(t, 0.9, 0.999) * bound + 4 * t * U64 * (abs(w) + bound)
    assert moved <= bound + slack


@given(st.integers(0, 300), st.floats(0, 1))
def test_adamw_displacement_upper_bound__is_the_sum_of_the_steps(n: int, lr: float) -> None:
    total = math.fsum(lr * oracle_ratios()[t] for t in range(n))
    bound = adamw_displacement_upper_bound(lr, n)
    assert total <= bound <= total * (1 + 8 * RATIO_ROUNDINGS * U64) + 2.0**-1000


def oracle_ratios() -> list[float]:
    if not ORACLE:
        with mpmath.workdps(30):
            ORACLE.extend(float(oracle(t, 0.9, 0.999)) * (1 - 4 * U64) for t in range(1, 301))
    return ORACLE


ORACLE: list[float] = []


def test_adamw_displacement_upper_bound__decay_alone_is_attained() -> None:
    """No gradients: w_T = (1 - lr lambda)^T w_0, in rationals."""
    lr, decay, w, n = 2.0**-7, 0.5, 3.0, 50
    exact = (1 - (1 - Fraction(lr) * Fraction(decay)) ** n) * Fraction(w)
    extra = Fraction(adamw_displacement_upper_bound(lr, n))
    bound = Fraction(adamw_displacement_upper_bound(lr, n, weight_decay=decay, largest_weight=w))
    assert exact <= bound - extra + 8 * Fraction(U64) * extra
    assert bound - extra <= exact + 32 * Fraction(U64) * (exact + extra)


def test_adamw_displacement_upper_bound__a_whole_decay_takes_all() -> None:
    bound = adamw_displacement_upper_bound(1.0, 1, weight_decay=1.0, largest_weight=5.0)
    assert 1 + 5 <= bound <= (1 + 5) * (1 + 4 * RATIO_ROUNDINGS * U64)


def test_adamw_displacement_upper_bound__is_0_without_steps() -> None:
    assert adamw_displacement_upper_bound(1e-3, 0) <= 2.0**-1074
    assert adamw_displacement_upper_bound([], 0, weight_decay=1, largest_weight=1) <= 2.0**-1073


BAD: list[tuple[str, dict[str, Any]]] = [
    ("lr must be finite", {"lr": -1.0}),
    ("lr must be finite", {"lr": math.nan}),
    ("t must be at least 1", {"t": 0}),
    ("beta1 must be", {"beta1": 1.0}),
    ("beta1 must be", {"beta1": -0.1}),
    ("beta2 must be", {"beta2": 0.0}),
    ("beta2 must be", {"beta2": 1.0}),
]


@pytest.mark.parametrize(("message", "bad"), BAD)
def test_adamw_step_upper_bound__refuses(message: str, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        adamw_step_upper_bound(**({"lr": 1e-3, "t": 1} | bad))


def test_extremal_gradients__refuse_no_step() -> None:
    with pytest.raises(ValueError, match="t must be at least 1"):
        extremal_gradients(0)


@pytest.mark.parametrize(
    ("message", "bad"),
    [
        ("steps must be in", {"steps": -1}),
        ("steps must be in", {"steps": STEPS_AT_MOST + 1}),
        ("lr must be a number or one for each", {"lr": [1e-3]}),
        ("lr must be finite", {"lr": [1e-3, -1e-3]}),
        ("lr must be finite", {"lr": math.inf}),
        ("weight_decay must be", {"weight_decay": -1.0}),
        ("weight_decay must be", {"weight_decay": 1e4}),
        ("largest_weight must be finite", {"largest_weight": -1.0}),
        ("beta1 must be", {"beta1": 2.0}),
    ],
)
def test_adamw_displacement_upper_bound__refuses(message: str, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        adamw_displacement_upper_bound(**({"lr": 1e-3, "steps": 2} | bad))


@pytest.mark.parametrize("t", [1, 10, 300])
def test_adamw_step_upper_bound__is_the_step_of_torch(t: int) -> None:
    """The real optimizer on the extremal gradients, float64: eps at its smallest, the step read off a weight at 0."""
    torch = pytest.importorskip("torch")
    w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.AdamW([w], lr=1.0, eps=0.0, weight_decay=0.0)
    before = 0.0
    for g in extremal_gradients(t).tolist():
        before = w.item()
        w.grad = torch.full((1,), g, dtype=torch.float64)
        optimizer.step()
    step = abs(w.item() - before)
    bound = adamw_step_upper_bound(1.0, t)
    # the difference of two weights of size below 7.27 t, and the recursion
    slack = recursion_slack(t, 0.9, 0.999) * bound + 2 * U64 * 7.27 * t
    assert abs(step - bound) <= slack


@given(steps, beta1s, beta2s)
@example(400, 0.9, 0.5)  # r > 1
def test_moment_ratios__hold_with_the_worst_faithful_libm(t: int, beta1: float, beta2: float) -> None:
    """Off by an ulp downward in every log1p and expm1, where a machine's own library errs by half of that."""
    bound = bound_toward_zero(t, beta1, beta2)
    assert math.isinf(bound) or Fraction(bound) ** 2 >= moment_square(t, beta1, beta2)


def moment_square(t: int, beta1: float, beta2: float) -> Fraction:
    """The square of `moment_ratios` in rationals, from its closed form."""
    a, b = Fraction(beta1), Fraction(beta2)
    r = a * a / b
    return (1 - a) ** 2 / (1 - b) * ((1 - r**t) / (1 - r) if r != 1 else t)


def bound_toward_zero(t: int, beta1: float, beta2: float) -> float:
    with patch("unforgotten.theory.geometry.adamw.np", numpy_toward_zero()):
        return float(moment_ratios(np.array([t]), beta1, beta2)[0])


@pytest.mark.parametrize(
    ("beta1", "beta2", "t"),
    [
        (0.7842036900050016, 0.5397840924709476, 2449),
        (0.7591674318068986, 0.5008648206438208, 3785),
        (0.7595805253601986, 0.5342586312825433, 7237),
    ],
)
def test_moment_ratios__of_a_long_growing_series_needs_its_slack(beta1: float, beta2: float, t: int) -> None:
    """r^t is past e^300, so an error of log r counts t times: with half the slack a faithful libm breaks the bound."""
    bound, square = bound_toward_zero(t, beta1, beta2), moment_square(t, beta1, beta2)
    assert Fraction(bound) ** 2 >= square
    growth, u = Fraction(log_growth(t, beta1, beta2)), Fraction(U64)
    whole, half = (1 + (RATIO_ROUNDINGS // 2 + n * growth) * u for n in (2, 1))
    # 13 u and more below; `log_growth` is off by 1e-12 of itself, so half the slack by 1e-9 u
    assert (Fraction(bound) * half / whole) ** 2 < square
