from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from numpy.typing import NDArray

from unforgotten.theory.geometry.adamw import adamw_limit_ratio, adamw_step_upper_bound, extremal_gradients
from unforgotten.theory.geometry.optimizers import (
    STEP_UPPER_BOUNDS,
    adam_uncorrected_step_upper_bound,
    decay_step_upper_bound,
    frozen_magnitude,
    largest_step,
    lion_step_upper_bound,
    lora_change_upper_bound,
    sgd_step_upper_bound,
    sign_step_upper_bound,
)
from unforgotten.verification.chance import rng_for
from unforgotten.verification.oracles import U64
from unforgotten.verification.recording.tallies import record

ROUNDED_UP = 64 * U64  # by how much a bound may exceed its formula, relative
ZERO = Fraction(0)
unit = st.floats(0, 1)
histories = hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(-1, 1))


@pytest.mark.parametrize("t", [1, 2, 30, 500])
def test_adam_uncorrected_step_upper_bound__is_the_exact_value(t: int) -> None:
    """Squared, in rationals: (1-b1)^2/(1-b2) sum of r^k."""
    a, b = Fraction(0.9), Fraction(0.999)
    square = (1 - a) ** 2 / (1 - b) * sum(((a * a / b) ** k for k in range(t)), ZERO)
    bound = Fraction(adam_uncorrected_step_upper_bound(1.0, t)) ** 2
    assert square <= bound <= square * (1 + 4 * Fraction(ROUNDED_UP))


def test_adam_uncorrected_step_upper_bound__starts_at_3_16_and_ends_as_adamw() -> None:
    """0.1 / sqrt(0.001) = sqrt 10, to the rounding of 0.999."""
    assert adam_uncorrected_step_upper_bound(1.0, 1) == pytest.approx(
        math.sqrt(10), rel=ROUNDED_UP + U64 / 0.001, abs=0
    )
    assert adam_uncorrected_step_upper_bound(1.0, 10**6) == pytest.approx(adamw_limit_ratio(), rel=ROUNDED_UP, abs=0)


@given(histories, st.floats(0, 0.99), st.floats(0.05, 0.999))
def test_adam_uncorrected_step_upper_bound__bounds_every_history(
    gradients: NDArray[Any], beta1: float, beta2: float
) -> None:
    t = len(gradients)
    bound = adam_uncorrected_step_upper_bound(1.0, t, beta1, beta2)
    slack = U64 * (8 * t + 4 / (1 - beta1) + 4 / (1 - beta2) + 32)  # as in test_adamw
    assert uncorrected(gradients * (np.abs(gradients) > 1e-6), beta1, beta2) <= bound * (1 + slack)
    attained = uncorrected(extremal_gradients(t, beta1, beta2), beta1, beta2)
    assert attained >= bound * (1 - slack - 8 * t * U64)
    ratio = attained / (bound * (1 + slack))
    record("adam_uncorrected_step_upper_bound", gradients, beta1, beta2, ratio=ratio)


def uncorrected(gradients: NDArray[Any], beta1: float, beta2: float) -> float:
    m = v = 0.0
    for g in gradients.tolist():
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
    return abs(m) / math.sqrt(v) if v else 0.0


def sgd_steps(gradients: list[Fraction], momentum: Fraction, dampening: Fraction, *, nesterov: bool) -> list[Fraction]:
    """The update that the documentation of torch.optim.SGD prints, in rationals, lr 1."""
    buffer: Fraction | None = None
    out = []
    for g in gradients:
        if momentum != 0:
            buffer = g if buffer is None else momentum * buffer + (1 - dampening) * g
            g = g + momentum * buffer if nesterov else buffer
        out.append(g)
    return out


momenta = st.floats(0, 0.999)


@given(histories, momenta, unit, st.booleans())
def test_sgd_step_upper_bound__bounds_every_clipped_history(
    gradients: NDArray[Any], momentum: float, dampening: float, nesterov: bool
) -> None:
    dampening = 0.0 if nesterov else dampening
    exact = [Fraction(g) for g in gradients.tolist()]
    got = sgd_steps(exact, Fraction(momentum), Fraction(dampening), nesterov=nesterov)
    for t, step in enumerate(got, start=1):
        bound = sgd_step_upper_bound(1.0, t, 1.0, momentum, dampening, nesterov)
        assert abs(step) <= Fraction(bound)


@given(st.integers(1, 80), momenta, unit, st.booleans(), st.floats(2.0**-20, 1e3))
@example(2, 0.0, 0.5, False, 1.0)  # without momentum there is no buffer to dampen
@example(2, 5e-324, 1.0, False, 1.0)  # almost no step, of which the bound is the least number above 0
def test_sgd_step_upper_bound__is_attained_by_equal_gradients(
    t: int, momentum: float, dampening: float, nesterov: bool, clip: float
) -> None:
    dampening = 0.0 if nesterov else dampening
    equal = [Fraction(clip)] * t
    step = sgd_steps(equal, Fraction(momentum), Fraction(dampening), nesterov=nesterov)[-1]
    bound = Fraction(sgd_step_upper_bound(0.5, t, clip, momentum, dampening, nesterov))
    assert step / 2 <= bound <= step / 2 * (1 + Fraction(ROUNDED_UP)) + Fraction(2) ** -999
    case = (t, momentum, dampening, nesterov, clip)
    record("sgd_step_upper_bound", *case, ratio=float(step / 2 / bound))


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("options", [{}, {"dampening": 0.25}, {"dampening": 1.0}, {"nesterov": True}], ids=str)
def test_sgd_step_upper_bound__is_the_step_of_torch(momentum: float, options: dict[str, Any]) -> None:
    """Equal gradients of 1. Torch refuses Nesterov without momentum, so that is no step of it."""
    torch = pytest.importorskip("torch")
    w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    if momentum == 0 and options.get("nesterov"):
        with pytest.raises(ValueError, match="Nesterov momentum requires a momentum"):
            torch.optim.SGD([w], lr=1.0, momentum=momentum, **options)
        return
    optimizer = torch.optim.SGD([w], lr=1.0, momentum=momentum, **options)
    for t in range(1, 20):
        before, w.grad = w.item(), torch.ones(1, dtype=torch.float64)
        optimizer.step()
        bound = sgd_step_upper_bound(1.0, t, 1.0, momentum, **options)
        assert abs(before - w.item()) == pytest.approx(bound, rel=0, abs=ROUNDED_UP * 2 * t)


def test_sgd_step_upper_bound__covers_coupled_weight_decay() -> None:
    """The decay joins the gradient after clipping: clip + lambda |w| bounds it."""
    torch = pytest.importorskip("torch")
    w = torch.nn.Parameter(torch.full((1,), -4.0, dtype=torch.float64))
    optimizer = torch.optim.SGD([w], lr=0.125, weight_decay=0.5)
    w.grad = torch.full((1,), 3.0, dtype=torch.float64)
    torch.nn.utils.clip_grad_norm_([w], 1.0)
    optimizer.step()
    # clip_grad_norm_ divides by norm + 1e-6, so the clipped gradient is below 1
    assert abs(w.item() + 4) <= sgd_step_upper_bound(0.125, 1, 1.0 + 0.5 * 4)
    w.grad = torch.full((1,), -1.0, dtype=torch.float64)
    before = w.item()
    optimizer.step()
    assert abs(w.item() - before) > sgd_step_upper_bound(0.125, 1, 1.0)


@given(histories, unit, st.floats(0, 0.999), st.floats(0, 0.999))
def test_lion_step_upper_bound__bounds_every_history(
    gradients: NDArray[Any], lr: float, beta1: float, beta2: float
) -> None:
    m = 0.0
    for t, g in enumerate(gradients.tolist(), start=1):
        step = lr * np.sign(beta1 * m + (1 - beta1) * g)
        bound = lion_step_upper_bound(lr, t)
        assert abs(step) <= bound
        if bound:
            record("lion_step_upper_bound", lr, beta1, beta2, m, g, ratio=abs(step) / bound)
        m = beta2 * m + (1 - beta2) * g


@given(histories, unit)
def test_sign_step_upper_bound__is_attained_by_every_gradient_but_0(gradients: NDArray[Any], lr: float) -> None:
    for t, g in enumerate(gradients.tolist(), start=1):
        bound = sign_step_upper_bound(lr, t)
        assert abs(lr * np.sign(g)) == (bound if g else 0)
        if bound:
            record("sign_step_upper_bound", lr, g, ratio=abs(lr * np.sign(g)) / bound)


@given(unit, unit, st.floats(0, 100))
def test_decay_step_upper_bound__is_the_product(lr: float, decay: float, w: float) -> None:
    exact = Fraction(lr) * Fraction(decay) * Fraction(w)
    bound = Fraction(decay_step_upper_bound(lr, decay, w))
    assert exact <= bound <= exact * (1 + Fraction(ROUNDED_UP)) + Fraction(2) ** -999
    if bound:
        record("decay_step_upper_bound", lr, decay, w, ratio=float(exact / bound))


sizes = st.floats(0, 4)


@given(st.integers(1, 4), st.tuples(sizes, sizes, sizes, sizes), sizes, st.integers(0, 2**32))
@example(3, (0.0, 0.0, 1.375, 5e-324), 1.0, 0)  # a product below the normal range, times the rank
def test_lora_change_upper_bound__bounds_every_product_and_is_attained(
    rank: int, bounds: tuple[float, float, float, float], scale: float, seed: int
) -> None:
    """Rationals; random factors within the bounds, and all entries at their bounds."""
    rng = rng_for("lora", rank, bounds, seed)
    bound = Fraction(lora_change_upper_bound(*bounds, rank, scale))
    at_the_ends = changed(np.ones((4, 3, rank)), bounds, scale)
    assert (np.abs(changed(rng.uniform(-1, 1, (4, 3, rank)), bounds, scale)) <= bound).all()
    assert (at_the_ends <= bound).all()
    assert (bound <= at_the_ends * (1 + Fraction(ROUNDED_UP)) + Fraction(2) ** -999).all()
    if bound:
        ratio = float(at_the_ends.max() / bound)
        record("lora_change_upper_bound", rank, bounds, scale, seed, ratio=ratio)


def changed(shares: NDArray[Any], bounds: tuple[float, float, float, float], scale: float) -> NDArray[Any]:
    """scale (B'A' - BA), exact; `shares` of the four bounds."""
    exact = np.vectorize(Fraction, otypes=[object])
    b, a, db, da = (exact(s) * Fraction(x) for s, x in zip(shares, bounds, strict=True))
    return Fraction(scale) * ((b + db) @ (a + da).T - b @ a.T)


def test_lora_change_upper_bound__is_the_product_from_a_zero_start() -> None:
    assert lora_change_upper_bound(0.0, 0.5, 0.25, 0.125, 8, 2.0) == pytest.approx(
        2 * 8 * 0.25 * 0.625, rel=ROUNDED_UP, abs=0
    )


OPTIONS: dict[str, dict[str, Any]] = {"sgd": {"clip": 1.0}}


@pytest.mark.parametrize("name", sorted(STEP_UPPER_BOUNDS))
def test_largest_step__no_earlier_step_is_larger(name: str) -> None:
    options = OPTIONS.get(name, {})
    bounds = [largest_step(name, 1e-3, t, **options) for t in range(1, 300)]
    # rounding up differs from step to step
    assert all(b >= a * (1 - ROUNDED_UP) for a, b in pairwise(bounds))
    assert bounds[5] == STEP_UPPER_BOUNDS[name](1e-3, 6, **options)


@given(st.integers(1, 60), momenta, unit)
def test_largest_step__covers_a_damped_momentum(t: int, momentum: float, dampening: float) -> None:
    """With dampening the first step can be the largest: b_1 = 1, b_inf = (1 - dampening) / (1 - momentum)."""
    got = largest_step("sgd", 1.0, t, clip=1.0, momentum=momentum, dampening=dampening)
    each = [sgd_step_upper_bound(1.0, i, 1.0, momentum, dampening) for i in range(1, t + 1)]
    assert max(each) <= got * (1 + ROUNDED_UP)
    assert got in each


def test_largest_step__names_what_exists() -> None:
    with pytest.raises(ValueError, match="optimizer must be one of adam, adam-uncorrected, adamw"):
        largest_step("adagrad", 1e-3, 1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1, 3.0])
@pytest.mark.parametrize("name", ["adamw", "sign-sgd"])
def test_frozen_magnitude__freezes_every_weight_above(dtype: str, weight_decay: float, name: str) -> None:
    """Exhaustive over the normal weights of the dtype: neither sign of the largest step moves one, decay included."""
    lr, steps = 1e-4, 40
    frozen = frozen_magnitude(name, lr, steps, dtype, weight_decay)
    w = weights_of(dtype)
    step = largest_step(name, lr, steps)
    for update in (step, -step, 0.0):
        decayed = (1 - lr * weight_decay) * w.astype(np.float64)
        apart = cast(cast(decayed, dtype).astype(np.float64) + update, dtype)
        once = cast(decayed + update, dtype)
        for after in (apart, once):
            moved = np.abs(w[after != w].astype(np.float64))
            assert moved.size == 0 or moved.max() <= frozen
    if not weight_decay:
        below = w[(np.abs(w.astype(np.float64)) < frozen / 4)]
        assert (cast(below.astype(np.float64) + step, dtype) != below).all()


def weights_of(dtype: str) -> NDArray[Any]:
    """All numbers of the dtype with 2^-14 <= |w| < 2, normal in both; both signs."""
    kind = np.dtype(np.float16) if dtype == "float16" else np.dtype(ml_dtypes.bfloat16)
    first, last = (np.array([x]).astype(kind).view(np.uint16)[0] for x in (2.0**-14, 2.0))
    bits = np.arange(first, last, dtype=np.uint16)
    return np.concatenate([bits, bits | np.uint16(0x8000)]).view(kind)


def cast(x: NDArray[Any], dtype: str) -> NDArray[Any]:
    """float64 rounded once; ml_dtypes goes by float32, which no value here is near enough a tie to feel."""
    kind: Any = np.float16 if dtype == "float16" else ml_dtypes.bfloat16
    return x.astype(kind)


def test_frozen_magnitude__refutes_the_folk_dead_zone() -> None:
    """ "bf16 at lr 1e-5: |w| >= 0.0039 never moves" takes a step to be at most lr; AdamW's step 60 can be 1.76 lr."""
    assert frozen_magnitude("sign-sgd", 1e-5, 60, "bfloat16") == 2.0**-8
    assert frozen_magnitude("adamw", 1e-5, 1, "bfloat16") == 2.0**-8
    assert frozen_magnitude("adamw", 1e-5, 60, "bfloat16") == 2.0**-7
    assert frozen_magnitude("adamw", 1e-5, 2_000, "bfloat16") == 2.0**-5
    step = adamw_step_upper_bound(1e-5, 60)
    w = np.array([1.25 * 2.0**-8]).astype(ml_dtypes.bfloat16)
    assert cast(w.astype(np.float64) + 1e-5, "bfloat16") == w
    assert cast(w.astype(np.float64) + step, "bfloat16") != w


def test_frozen_magnitude__decay_is_lost_below_a_relative_half_ulp() -> None:
    """bf16: lr lambda < 2^-9 never decays a weight by itself; beyond it no weight is safe."""
    w = weights_of("bfloat16").astype(np.float64)
    assert (cast(w * (1 - 2.0**-9), "bfloat16") == w).all()
    assert (cast(w * (1 - 2.0**-7), "bfloat16") != w).all()
    assert math.isfinite(frozen_magnitude("lion", 2.0**-12, 1, "bfloat16", weight_decay=7.9))
    assert math.isinf(frozen_magnitude("lion", 2.0**-12, 1, "bfloat16", weight_decay=8.0))


Call = Callable[[], float]
REFUSED: list[tuple[str, Call]] = [
    ("lr must be finite", lambda: adam_uncorrected_step_upper_bound(-1.0, 1)),
    ("t must be at least", lambda: adam_uncorrected_step_upper_bound(1.0, 0)),
    ("beta2 must be", lambda: adam_uncorrected_step_upper_bound(1.0, 1, 0.9, 1.0)),
    ("clip must be finite", lambda: sgd_step_upper_bound(1.0, 1, math.inf)),
    ("t must be at least", lambda: sgd_step_upper_bound(1.0, 0, 1.0)),
    ("momentum must be in", lambda: sgd_step_upper_bound(1.0, 1, 1.0, 1.0)),
    ("momentum must be in", lambda: sgd_step_upper_bound(1.0, 1, 1.0, 0.5, -0.5)),
    ("momentum must be in", lambda: sgd_step_upper_bound(1.0, 1, 1.0, 0.5, 1.5)),
    ("dampening must be 0", lambda: sgd_step_upper_bound(1.0, 1, 1.0, 0.5, 0.5, True)),
    ("lr must be finite", lambda: lion_step_upper_bound(math.nan, 1)),
    ("t must be at least", lambda: sign_step_upper_bound(1.0, -1)),
    ("weight_decay must be", lambda: decay_step_upper_bound(1.0, -1.0, 1.0)),
    ("a_moved must be", lambda: lora_change_upper_bound(0.0, 1.0, 1.0, -1.0, 1)),
    ("rank must be at least", lambda: lora_change_upper_bound(0.0, 1.0, 1.0, 1.0, 0)),
    ("dtype must be one of", lambda: frozen_magnitude("lion", 1.0, 1, "int8")),
    ("eta must be positive", lambda: frozen_magnitude("lion", 0.0, 1, "float16")),
]


@pytest.mark.parametrize(("message", "call"), REFUSED)
def test_optimizers__refuse_what_has_no_bound(message: str, call: Call) -> None:
    with pytest.raises(ValueError, match=message):
        call()
