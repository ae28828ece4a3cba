"""T5 for stored states and weights: rounded recursions in rationals, stored moves over whole dtypes, and torch itself."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from unforgotten.theory.geometry.adamw import (
    adamw_displacement_upper_bound,
    adamw_ratio_upper_bound,
    adamw_step_upper_bound,
    extremal_gradients,
)
from unforgotten.theory.geometry.optimizers import frozen_magnitude, largest_stored_step
from unforgotten.theory.geometry.stored_steps import (
    rounded_momentum,
    rounded_states_ratio_upper_bound,
    stored_displacement_upper_bound,
    stored_move_upper_bound,
)
from unforgotten.verification.chance import rng_for
from unforgotten.verification.recording.tallies import record

BF16: Any = ml_dtypes.bfloat16
U_BF16 = Fraction(1, 2**8)
SIGNS = st.sampled_from([-1, 1])


def rounded_to(x: float) -> float:
    """Round to bfloat16 by way of float32, as a kernel does."""
    return float(np.float32(x).astype(BF16))


def step_in_bfloat16(gradients: list[float], beta1: float, beta2: float) -> float:
    """The last step of AdamW in units of lr, every result of an operation rounded to bfloat16, eps = 0."""
    m = v = 0.0
    for g in gradients:
        m = rounded_to(m + (1 - beta1) * (g - m))
        v = rounded_to(rounded_to(beta2 * v) + (1 - beta2) * g * g)
    t = len(gradients)
    root = rounded_to(rounded_to(math.sqrt(v)) / math.sqrt(1 - beta2**t))
    return abs(m) / (1 - beta1**t) / rounded_to(root)


histories = hnp.arrays(np.float64, st.integers(1, 80), elements=st.floats(-8, 8, width=16))


@given(histories, st.floats(0, 0.97), st.floats(0.5, 0.999))
def test_rounded_states_ratio_upper_bound__bounds_a_step_in_bfloat16(
    gradients: NDArray[Any], beta1: float, beta2: float
) -> None:
    history = [float(g) for g in gradients.astype(BF16) if abs(g) > 2.0**-10] or [1.0]
    bound = rounded_states_ratio_upper_bound(len(history), "bfloat16", beta1, beta2)
    got = step_in_bfloat16(history, beta1, beta2)
    assert got <= bound
    record("rounded_states_ratio_upper_bound", history, beta1, beta2, ratio=got / bound)


@given(st.lists(st.tuples(SIGNS, SIGNS, SIGNS), min_size=1, max_size=6), st.data())
def test_rounded_states_ratio_upper_bound__bounds_every_choice_of_roundings(
    errors: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    """Rationals: each rounding is a factor 1 + u or 1 - u, chosen freely. The square of the quotient is compared."""
    b1, b2 = Fraction(9, 10), Fraction(999, 1000)
    m, v = Fraction(0), Fraction(0)
    for of_m, of_decay, of_sum in errors:
        g = Fraction(data.draw(st.integers(-20, 20))) or Fraction(1)
        m = (b1 * m + (1 - b1) * g) * (1 + of_m * U_BF16)
        v = (b2 * v * (1 + of_decay * U_BF16) + (1 - b2) * g * g) * (1 + of_sum * U_BF16)
    t = len(errors)
    square = (m / (1 - b1**t)) ** 2 / (v / (1 - b2**t)) / (1 - U_BF16) ** 6
    assert square <= Fraction(rounded_states_ratio_upper_bound(t, "bfloat16", 0.9, 0.999)) ** 2


@pytest.mark.parametrize("states", ["float32", "bfloat16"])
def test_rounded_states_ratio_upper_bound__is_the_worst_choice_of_roundings(states: str) -> None:
    """All roundings of m up, all others down, on the extremal gradients of the betas that this makes: attained."""
    u = Fraction(1, 2 ** {"float32": 24, "bfloat16": 8}[states])
    b1, b2 = Fraction(0.9), Fraction(0.999)
    for t in (1, 2, 7, 40):
        ratio = b1 * (1 + u) / (b2 * (1 - u) ** 2)
        m, v = Fraction(0), Fraction(0)
        for i in range(t):
            g = ratio ** (t - 1 - i)
            m = (b1 * m + (1 - b1) * g) * (1 + u)
            v = (b2 * v * (1 - u) + (1 - b2) * g * g) * (1 - u)
        square = (m / (1 - b1**t)) ** 2 / (v / (1 - b2**t)) / (1 - u) ** 6
        bound = Fraction(rounded_states_ratio_upper_bound(t, states)) ** 2
        kernel = Fraction(2 * (2 * t + 8), 2**20)  # of float32 inside the operations, which the oracle does without
        assert square <= bound <= square * (1 + 2 * kernel)


def test_rounded_states_ratio_upper_bound__never_falls() -> None:
    rounded_up = 1 - 2.0**-40
    for betas in ((0.9, 0.999), (0.99, 0.9), (0.0, 0.5)):
        bounds = [rounded_states_ratio_upper_bound(t, "bfloat16", *betas) for t in range(1, 200)]
        assert all(b >= a * rounded_up for a, b in pairwise(bounds))


def test_rounded_states_ratio_upper_bound__holds_in_torch_where_the_real_one_does_not() -> None:
    """bfloat16 parameters and moments: the first step exceeds lr, and no step exceeds the bound."""
    torch = pytest.importorskip("torch")
    rng = rng_for("stored steps of torch")
    start = torch.zeros(4096, dtype=torch.bfloat16)
    w = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([w], lr=1.0, eps=0.0, weight_decay=0.0)
    sizes = np.where(np.arange(40) % 7 == 0, 4.0, 0.5)
    largest = []
    for t, size in enumerate(sizes, start=1):
        with torch.no_grad():
            w.zero_()  # the step itself is stored, rounded once more
        w.grad = torch.from_numpy(size * rng.normal(size=4096) + size).to(torch.bfloat16)
        optimizer.step()
        largest.append(w.detach().abs().max().item())
        assert largest[-1] <= rounded_states_ratio_upper_bound(t, "bfloat16") * (1 + 2.0**-8)
    assert largest[0] > 1 + 2.0**-8


def gradients_of(dtype: Any) -> NDArray[Any]:
    return np.geomspace(2.0**-6, 2.0**6, 20_001).astype(dtype)


def test_frozen_magnitude__no_gradient_moves_a_weight_above_it_in_torch() -> None:
    """At lr 0.9995 2^-16 many a gradient moves a weight just above 2^-8: the first step of bfloat16 states exceeds lr."""
    torch = pytest.importorskip("torch")
    lr = 0.9995 * 2.0**-16
    moved = {}
    for weight in (1.25 * 2.0**-8, 1.25 * 2.0**-7):
        w = torch.nn.Parameter(torch.full((20_001,), weight, dtype=torch.bfloat16))
        optimizer = torch.optim.AdamW([w], lr=lr, weight_decay=0.0)
        w.grad = torch.from_numpy(gradients_of(np.float32)).to(torch.bfloat16)
        optimizer.step()
        moved[weight] = (w.detach() != torch.tensor(weight, dtype=torch.bfloat16)).float().mean().item()
    assert frozen_magnitude("adamw", lr, 1, "bfloat16") == 2.0**-7
    assert frozen_magnitude("adamw", lr, 1, "bfloat16", states="float32") == 2.0**-8
    assert moved[1.25 * 2.0**-8] > 0.2
    assert moved[1.25 * 2.0**-7] == 0


def test_frozen_magnitude__counts_the_kernel_that_adds_in_float32() -> None:
    """A step just below half a gap becomes the tie in float32, and a tie at an odd mantissa moves."""
    lr = float(np.nextafter(np.float32(2.0**-16), np.float32(0)))
    odd = np.float32(2.0**-8 * (1 + 2.0**-7))
    assert np.float32(odd + np.float32(lr)).astype(BF16) != odd.astype(BF16)
    assert odd <= frozen_magnitude("sign-sgd", lr, 1, "bfloat16")


@given(st.floats(0, 2.0**-3), st.sampled_from(["bfloat16", "float16", "float32"]))
def test_stored_move_upper_bound__bounds_every_weight(step: float, dtype: str) -> None:
    """Every number of a 16-bit dtype in [2^-12, 2), and random float32: both signs of the step, rounded via float32."""
    kind: Any = {"bfloat16": BF16, "float16": np.float16, "float32": np.float32}[dtype]
    if dtype == "float32":
        w = rng_for("stored move", step).normal(0, 0.05, 4096).astype(np.float32)
    else:
        first, last = (np.array([x]).astype(kind).view(np.uint16)[0] for x in (2.0**-12, 2.0))
        w = np.arange(first, last, dtype=np.uint16).view(kind)
    bound = stored_move_upper_bound(step, dtype)
    exact = w.astype(np.float64)
    for u in (step, -step):
        after = (exact + u).astype(np.float32).astype(kind).astype(np.float64)
        moved = np.abs(after - exact).max()
        record("stored_move_upper_bound", dtype, u, ratio=moved / bound if bound else 0.0)
        assert moved <= bound


def test_stored_move_upper_bound__counts_two_roundings_of_a_short_dtype() -> None:
    for dtype, bits in (("bfloat16", 8), ("float16", 11)):
        want = 2 / (1 - Fraction(1, 2 ** (23 - bits)))
        assert want <= Fraction(stored_move_upper_bound(1.0, dtype)) <= want * (1 + Fraction(1, 2**48))
    assert stored_move_upper_bound(1.0, "float32") == np.nextafter(2.0, np.inf)
    assert stored_move_upper_bound(0.0, "float32") == 0


def test_stored_move_upper_bound__is_reached_in_the_limit() -> None:
    step = 2.0**-8 * (1 + 2.0**-7)  # just above half the gap above 1
    assert rounded_to(1 + step) - 1 == 2.0**-7
    assert 2.0**-7 / stored_move_upper_bound(step, "bfloat16") > 1 - 2.0**-6


def test_stored_displacement_upper_bound__covers_rounding_where_the_real_one_does_not() -> None:
    """w = 1.5 2^-8 in bfloat16, lr 0.6 2^-15: a step is above half a gap, so each moves a whole one."""
    torch = pytest.importorskip("torch")
    lr, steps, start = 0.6 * 2.0**-15, 10, 1.5 * 2.0**-8
    w = torch.nn.Parameter(torch.tensor([start], dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([w], lr=lr, weight_decay=0.0)
    for _ in range(steps):
        w.grad = torch.tensor([-1.0], dtype=torch.bfloat16)
        optimizer.step()
    moved = abs(w.item() - start)
    assert moved == steps * 2.0**-15
    assert moved > 1.6 * adamw_displacement_upper_bound(lr, steps)
    assert moved <= stored_displacement_upper_bound(lr, steps, "bfloat16")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("decay", [0.0, 4.0])
def test_stored_displacement_upper_bound__bounds_torch(dtype: str, decay: float) -> None:
    torch = pytest.importorskip("torch")
    rng = rng_for("stored displacement", dtype, decay)
    lr, steps = 2.0**-9, 60
    start = torch.from_numpy(rng.uniform(-1, 1, 2048)).to(getattr(torch, dtype))
    w = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([w], lr=lr, weight_decay=decay)
    for t in range(1, steps + 1):
        w.grad = torch.from_numpy(rng.normal(1.1**t, 1.1**t, 2048)).to(w.dtype)
        optimizer.step()
        moved = (w.detach().double() - start.double()).abs().max().item()
        bound = stored_displacement_upper_bound(lr, t, dtype, weight_decay=decay, largest_weight=1.0)
        assert moved <= bound
        record("stored_displacement_upper_bound", dtype, decay, t, ratio=moved / bound)


def test_stored_displacement_upper_bound__is_the_sum_it_states() -> None:
    """float32, three steps of a schedule, decay: S_T + 2 sum x_t (W + S_{t-1}), by hand."""
    rates, decay, largest = [0.125, 0.25, 0.0625], 0.5, 3.0
    sizes = [r * rounded_states_ratio_upper_bound(t, "bfloat16") for t, r in enumerate(rates, start=1)]
    before = [0.0, 2 * sizes[0], 2 * (sizes[0] + sizes[1])]
    shares = [r * decay + 2.0**-25 for r in rates]
    want = 2 * sum(sizes) + 2 * sum(x * (largest + b) for x, b in zip(shares, before, strict=True))
    got = stored_displacement_upper_bound(
        rates, 3, "float32", states="bfloat16", weight_decay=decay, largest_weight=largest
    )
    assert want <= got <= want * (1 + 2.0**-48)
    assert stored_displacement_upper_bound(1.0, 0, "float32") <= 2.0**-1000


@given(histories, st.floats(0.0, 0.9), st.floats(0, 1), st.booleans())
def test_largest_stored_step__bounds_a_buffer_in_bfloat16(
    gradients: NDArray[Any], momentum: float, dampening: float, nesterov: bool
) -> None:
    """Every product and sum of torch's update rounded to bfloat16."""
    options: dict[str, Any] = {"momentum": momentum}
    options |= {"nesterov": nesterov} if nesterov else {"dampening": dampening}
    kept = 1 - options.get("dampening", 0.0)
    buffer: float | None = None
    for t, g in enumerate((float(g) for g in gradients.astype(BF16)), start=1):
        step = g
        if momentum:
            buffer = g if buffer is None else rounded_to(rounded_to(momentum * buffer) + kept * g)
            step = rounded_to(g + momentum * buffer) if nesterov else buffer
        bound = largest_stored_step("sgd", 1.0, t, "bfloat16", clip=8.0, **options)
        assert abs(step) <= bound
        record("largest_stored_step", gradients[:t], momentum, dampening, nesterov, ratio=abs(step) / bound)


def test_largest_stored_step__adds_what_the_states_add() -> None:
    assert largest_stored_step("lion", 1e-4, 9, "bfloat16") == pytest.approx(1e-4, rel=2.0**-19, abs=0)
    assert largest_stored_step("lion", 0.0, 9, "bfloat16") == 0
    real = adamw_step_upper_bound(1e-4, 9)
    stored = largest_stored_step("adamw", 1e-4, 9, "bfloat16")
    want = 1e-4 * rounded_states_ratio_upper_bound(9, "bfloat16")
    assert want <= stored <= want * (1 + 2.0**-19)
    assert real * 1.02 < stored < real * 1.05
    plain = largest_stored_step("adam-uncorrected", 1.0, 1, "bfloat16")
    u = 2.0**-8
    assert plain == pytest.approx(math.sqrt(10) * (1 + u) / (1 - u) ** 3.5, rel=2.0**-16, abs=0)


def test_rounded_momentum__is_momentum_times_two_roundings() -> None:
    grown, factor = rounded_momentum(0.5, "bfloat16")
    want = (1 + U_BF16) ** 2 * (1 + Fraction(1, 2**20)) ** 2
    assert want / 2 <= Fraction(grown) <= want / 2 * (1 + Fraction(1, 2**50))
    assert want <= Fraction(factor) <= want * (1 + Fraction(1, 2**50))
    assert rounded_momentum(0.0, "float32")[0] == 0


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("t must be at least 1", lambda: rounded_states_ratio_upper_bound(0, "bfloat16")),
        ("states must be one of float32, bfloat16", lambda: rounded_states_ratio_upper_bound(1, "float16")),
        ("states must be one of float32, bfloat16", lambda: largest_stored_step("lion", 1.0, 1, "int8")),
        ("step must be finite", lambda: stored_move_upper_bound(-1.0, "bfloat16")),
        ("step must be finite", lambda: stored_move_upper_bound(math.inf, "bfloat16")),
        ("dtype must be one of", lambda: stored_move_upper_bound(1.0, "int8")),
        (
            "largest_weight must be finite",
            lambda: stored_displacement_upper_bound(1.0, 1, "float32", largest_weight=-1),
        ),
        ("weight_decay must be in", lambda: stored_displacement_upper_bound(1.0, 1, "float32", weight_decay=2.0)),
        ("momentum must be below 0.992", lambda: rounded_momentum(0.9925, "bfloat16")),
        ("t must be at least", lambda: largest_stored_step("adamw", 1.0, 0, "bfloat16")),
    ],
)
def test_stored_steps__refuse_what_has_no_bound(message: str, call: Any) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_rounded_states_ratio_upper_bound__adds_little_to_the_real_one() -> None:
    """Real arithmetic is below, and extremal gradients of it are no longer extremal."""
    for t in (1, 30, 1000):
        assert adamw_ratio_upper_bound(t) < rounded_states_ratio_upper_bound(t, "float32")
        gap = rounded_states_ratio_upper_bound(t, "bfloat16") / adamw_ratio_upper_bound(t)
        assert 1.017 < gap < 1.06
    assert step_in_bfloat16(extremal_gradients(50).tolist(), 0.9, 0.999) <= rounded_states_ratio_upper_bound(
        50, "bfloat16"
    )
