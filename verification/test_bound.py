from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from unforgotten.theory.calculators.bound import LR_RANGE, Question, _Setup, _smallest_lr, as_object, block_size, bound
from unforgotten.theory.calculators.bound_text import lines
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import round_trip
from unforgotten.theory.geometry.optimizers import frozen_magnitude

STEP_OF_BISECTION = 2e-3  # brentq is asked for 1e-3 of lr
CHANCE = 5  # standard errors of a simulated gain
BLOCKS, PARTS = 8192, 32
QUADRATURE = 5e-3  # of a gain: half of what the nodes 1/16 apart err by where a jump falls between two


@pytest.mark.parametrize("name", ["int4-g64", "int4-row", "int4-tensor", "nf4-b64", "int8-row"])
def test_bound__smallest_lr_meets_the_wish_and_less_does_not(name: str) -> None:
    wanted = bound(Question(name, 0.02, 1e-5, 300, dtype="fp32"), gain=0.5, cosine=0.6).smallest_lr
    assert wanted is not None
    above, below = (
        bound(Question(name, 0.02, wanted * (1 + d), 300, dtype="fp32")).cosine
        for d in (STEP_OF_BISECTION, -STEP_OF_BISECTION)
    )
    assert above is not None
    assert below is not None
    assert below < 0.6 <= above


@pytest.mark.parametrize("name", ["int3-g64", "int4-g64", "int6-g64", "int8-g64", "fp4-b64", "nf4-b64", "fp8-g64"])
@pytest.mark.parametrize(("lr", "steps"), [(1e-5, 60), (1e-6, 60), (3e-7, 60), (1e-5, 1)])
def test_bound__is_what_steps_in_bf16_do(name: str, lr: float, steps: int) -> None:
    """Of formats with many levels too, whose cell at zero is narrow: at lr 3e-7 int8 swallows what moves."""
    random, fmt = np.random.default_rng(0), format_named(name)
    weights = (0.02 * random.standard_normal((BLOCKS, 64))).astype(ml_dtypes.bfloat16)
    drift = np.where(random.random(weights.shape) < 0.5, np.float32(-lr), np.float32(lr))
    moved = weights
    for _ in range(steps):
        moved = (moved.astype(np.float32) + drift).astype(ml_dtypes.bfloat16)
    before, after = weights.astype(np.float32), moved.astype(np.float32)
    delta = after.astype(np.float64) - before
    surviving = round_trip(after, fmt).astype(np.float64) - round_trip(before, fmt)
    parts = [(surviving[i] * delta[i]).sum() / (delta[i] ** 2).sum() for i in np.array_split(np.arange(BLOCKS), PARTS)]
    error = np.std(parts, ddof=1) / math.sqrt(PARTS)
    told = bound(Question(name, 0.02, lr, steps)).gain
    assert told is not None
    assert abs(told - np.mean(parts)) <= CHANCE * error + QUADRATURE


def test_bound__of_a_wider_grid_swallows_more_at_a_small_rate() -> None:
    """The edge at lr 3e-7 is 1.2e-4: inside of the cell at zero of int8, whatever the number of levels."""
    gains = {name: bound(Question(name, 0.02, 3e-7, 500)).gain for name in ("int6-row", "int8-row", "fp8-row")}
    assert gains["int6-row"] == gains["int8-row"] == 0
    assert gains["fp8-row"] is not None
    assert gains["fp8-row"] > 0.9


def test_bound__refuses_a_fine_grid_whose_scale_is_no_absmax() -> None:
    with pytest.raises(ValueError, match="proportional to the block's absmax"):
        bound(Question("int8-row-asym", 0.02, 1e-5, 10))


def test_bound__finds_the_cure_by_lr() -> None:
    """bf16 at lr 1e-5 loses most of the update in INT4 rows; a few times the lr keeps it, as C2 says (`theory/README.md#conjectures`)."""
    question = Question("int4-row", 0.02, 1e-5, 500)
    answer = bound(question, gain=0.9)
    assert answer.gain is not None
    assert answer.gain < 0.3
    assert answer.smallest_lr is not None
    assert 1e-5 < answer.smallest_lr < 4e-5


def test_bound__wishes_met_at_once_or_never() -> None:
    easy = bound(Question("int8-row", 0.02, 1e-5, 10**6, dtype="fp32"), cosine=0.01)
    assert easy.smallest_lr == 0.02 * 2.0**-22
    never = bound(Question("int4-g64", 1e-3, 1e-5, 1, "laplace", "fp16"), cosine=0.999999)
    assert never.smallest_lr is None
    assert lines(never, True)[-1].endswith("none is found")
    assert lines(easy, True)[-1].startswith("smallest lr:")


def test_bound__is_invariant_to_the_unit_of_the_weights() -> None:
    """Powers of two shift every binade: weights and lr doubled, the same gain, cosine and flips."""
    one = bound(Question("nf4-b64", 0.02, 1e-5, 100, snr=1.0))
    two = bound(Question("nf4-b64", 0.04, 2e-5, 100, snr=1.0))
    assert two.gain == one.gain
    assert two.cosine == one.cosine
    assert two.flips == one.flips
    assert two.dead_zone == 2 * (one.dead_zone or math.nan)


@pytest.mark.parametrize("optimizer", ["adamw", "sign"])
def test_bound__certain_dead_zone_is_no_smaller(optimizer: str) -> None:
    answer = bound(Question("int4-g64", 0.02, 1e-5, 500, optimizer=optimizer))
    assert answer.dead_zone == 2.0**-8
    assert answer.dead_zone is not None
    assert answer.certain_dead_zone >= answer.dead_zone


def test_bound__says_what_is_undefined() -> None:
    answer = bound(Question("int4-g64", 1.0, 1e-12, 3, dtype="fp16"))
    assert answer.gain is None
    assert answer.moved == 0
    assert any("undefined" in line for line in lines(answer, False))
    assert json.loads(json.dumps(as_object(answer), allow_nan=False))["question"]["snr"] is None
    fine = bound(Question("int4-g64", 0.02, 1e-5, 3, dtype="fp32", snr=0.5))
    assert fine.dead_zone is None
    assert any("every weight can move" in line for line in lines(fine, False))


def test_block_size__of_each_kind() -> None:
    question = Question("int4-row", 1.0, 1.0, 1, columns=10, rows=20)
    sizes = [block_size(format_named(n), question) for n in ("int4-row", "int4-tensor", "nf4-b64")]
    assert sizes == [10, 200, 64]
    square = Question("int4-tensor", 1.0, 1.0, 1)
    assert block_size(format_named("int4-tensor"), square) == 4096**2


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Question("int4-row", 1.0, 1.0, 1, dtype="int8"), "dtype must be one of bf16"),
        (Question("int4-row", 1.0, 1.0, 0), "steps must be at least 1"),
        (Question("int4-row", 1.0, 1.0, 1, columns=1), "columns must be at least 2"),
        (Question("int4-row", 1.0, 0.0, 1), "lr must be positive"),
    ],
)
def test_bound__refuses_bad_questions(question: Question, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bound(question)


@pytest.mark.parametrize("wish", [0.0, 1.0, 2.0, -1.0])
def test_bound__refuses_impossible_wishes(wish: float) -> None:
    with pytest.raises(ValueError, match="gain must be in"):
        bound(Question("int4-row", 1.0, 1.0, 1), gain=wish)


def test_bound__shares_of_the_absmax_add_up_to_1() -> None:
    """Rare values are left out; the others' shares make up for them. A quotient and a sum of n: n + 1 roundings."""
    weights = _Setup(Question("int4-g64", 1.0, 1.0, 1)).absmax.weights
    assert abs(math.fsum(weights) - 1) <= (len(weights) + 1) * 2.0**-53


def test_bound__finds_an_lr_that_just_meets_the_wish_at_the_end_of_its_range() -> None:
    """A gain that is 1/4 up to the last octave's end and 1/2 there: 1/2 is met, at the end itself."""

    def predict(lr: float) -> SimpleNamespace:
        gain = 0.5 if lr >= LR_RANGE[1] else 0.25
        return SimpleNamespace(expected=SimpleNamespace(gain=gain, cosine=math.nan))

    setup: Any = SimpleNamespace(predict=predict, density=SimpleNamespace(scale=1.0))
    assert _smallest_lr(setup, 0.5, None) == LR_RANGE[1]


def test_bound__certain_dead_zone_is_that_of_the_last_step() -> None:
    """AdamW's largest step grows with the steps, from c_1 = 1 toward 7.27 at the defaults: by two binades or more."""
    zones = {}
    for steps in (1, 1000):
        answer = bound(Question("int4-row", 1.0, 1e-4, steps, optimizer="adamw"))
        zones[steps] = frozen_magnitude("adamw", 1e-4, steps, "bfloat16")
        assert answer.certain_dead_zone == zones[steps]
    assert zones[1000] >= 4 * zones[1]
