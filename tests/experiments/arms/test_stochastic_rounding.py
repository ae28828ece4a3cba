"""Random rounding to bfloat16: its mean exactly, and an AdamW that loses nothing by it on average."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="the optimizer needs unforgotten[experiments]")

from torch import Tensor

from unforgotten.experiments.arms.stochastic_rounding import BETAS, EPS, LOW, StochasticAdamW, round_at_random

U32 = 2.0**-24  # half an ulp of float32 at 1
FALSE_ALARM = 1e-10
SPECIAL = (0.0, -0.0, 1.0, -1.0, 2.0**-126, 2.0**-133, 3.3895313892515355e38, 1e-39, -3e-42)


def bits() -> Tensor:
    """Every value that the random bits can have, once."""
    return torch.arange(LOW, dtype=torch.int32)


def drawn(count: int) -> list[float]:
    exponents = torch.randint(-120, 120, (count,), generator=torch.Generator().manual_seed(1))
    numbers = torch.randn(count, generator=torch.Generator().manual_seed(2))
    return [float(x) for x in torch.ldexp(numbers, exponents)]


@pytest.mark.parametrize("x", [*SPECIAL, *drawn(40)])
def test_the_mean_over_all_bits_is_the_number_itself(x: float) -> None:
    """Exactly: the two neighbours are counted, and float64 holds their weighted mean."""
    number = torch.tensor(x, dtype=torch.float32)
    rounded = round_at_random(number.expand(LOW).contiguous(), bits())
    assert rounded.dtype == torch.bfloat16
    ends = sorted({float(r) for r in rounded})
    assert len(ends) <= 2
    ups = int((rounded.double() == ends[-1]).sum())
    mean = ends[0] + (ends[-1] - ends[0]) * ups / LOW if len(ends) == 2 else ends[0]
    assert mean == float(number)


@pytest.mark.parametrize("x", [*SPECIAL, *drawn(10)])
def test_what_bfloat16_holds_is_kept(x: float) -> None:
    held = torch.tensor(x).to(torch.bfloat16)
    rounded = round_at_random(held.float().expand(LOW).contiguous(), bits())
    assert bool((rounded.view(torch.int16) == held.view(torch.int16)).all())


def test_neither_infinity_nor_nan_becomes_a_number() -> None:
    """The bits of a nan may all be set: what is added to them would carry into its sign."""
    patterns = torch.tensor([0x7F800000, -0x800000, 0x7F800001, 0x7FFFFFFF, -1], dtype=torch.int32)
    specials = patterns.view(torch.float32)
    for ends in (0, LOW - 1):
        rounded = round_at_random(specials, torch.full((5,), ends, dtype=torch.int32))
        assert rounded[:2].tolist() == [math.inf, -math.inf]
        assert bool(rounded[2:].isnan().all())


def one_step(w: Tensor, grad: Tensor, lr: float, seed: int = 0) -> Tensor:
    parameter = torch.nn.Parameter(w.clone())
    optimizer = StochasticAdamW([parameter], lr, seed)
    parameter.grad = grad.clone()
    optimizer.step()
    return parameter.detach()


def test_a_step_is_that_of_adamw_in_float32_rounded_to_a_neighbour() -> None:
    """Ours and torch's float32 step differ by rounding: some ten operations on the step, and one on the weight."""
    generator = torch.Generator().manual_seed(3)
    w = (0.03 * torch.randn(4096, generator=generator)).to(torch.bfloat16)
    grad = torch.randn(4096, generator=generator).to(torch.bfloat16)
    lr = 1e-3
    exact = torch.nn.Parameter(w.float())
    exact.grad = grad.float()
    torch.optim.AdamW([exact], lr=lr, weight_decay=0.0).step()
    moved = one_step(w, grad, lr).double()
    slack = 16 * U32 * lr + 2 * U32 * exact.detach().abs()
    size = exact.detach().abs().double()
    ulp = size / torch.frexp(size).mantissa / 2**8  # the power of two above, exactly, by 2^8
    away = (moved - exact.detach().double()).abs()
    assert bool((away < ulp + slack).all())
    assert bool((away > ulp / 2 + slack).any())  # which rounding to nearest never is


def test_a_step_far_below_the_spacing_is_made_on_average(monkeypatch: pytest.MonkeyPatch) -> None:
    """lr 1e-5 at weight 1, where bfloat16's spacing is 2^-8 below: over all bits the mean moves by lr, to nearest by 0."""
    monkeypatch.setattr(StochasticAdamW, "_bits", lambda self, x: bits())
    w, grad = torch.ones(LOW, dtype=torch.bfloat16), torch.ones(LOW, dtype=torch.bfloat16)
    lr = 1e-5
    moved = one_step(w, grad, lr).double().mean()
    slack = U32 * (1.0 + 16 * lr)  # the weight is rounded to float32 once; operations on the step
    assert abs(float(moved) - (1.0 - lr / (1.0 + EPS))) <= slack
    nearest = torch.nn.Parameter(w.clone())
    nearest.grad = grad
    torch.optim.AdamW([nearest], lr=lr, weight_decay=0.0).step()
    assert torch.equal(nearest.detach(), w)


def test_the_second_moment_follows_the_mean_square_where_to_nearest_it_stalls() -> None:
    """Gradients of square 1 throughout: v = 1 - b2^t. Every v stays in [0, 1], so Hoeffding bounds its mean."""
    count, steps = 8192, 1500
    ours = torch.nn.Parameter(torch.zeros(count, dtype=torch.bfloat16))
    theirs = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizers = [StochasticAdamW([ours], 0.0, seed=5), torch.optim.AdamW([theirs], lr=0.0, weight_decay=0.0)]
    for _ in range(steps):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    kept, stalled = (o.state[p]["exp_avg_sq"] for o, p in zip(optimizers, (ours, theirs), strict=True))
    expected = 1.0 - BETAS[1] ** steps
    room = math.sqrt(math.log(2 / FALSE_ALARM) / (2 * count)) + steps * 2 * U32
    assert kept.dtype == torch.bfloat16
    assert float(kept.max()) <= 1.0
    assert abs(float(kept.double().mean()) - expected) <= room
    assert float(stalled) < expected - 2 * room  # the test can see it


def test_the_seed_decides_the_bits() -> None:
    w, grad = torch.ones(4096, dtype=torch.bfloat16), torch.ones(4096, dtype=torch.bfloat16)
    first, again, other = (one_step(w, grad, 1e-3, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_float32_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"torch\.bfloat16, got torch\.float32"):
        StochasticAdamW([torch.nn.Parameter(torch.ones(2))], 1e-3, 0)


def test_a_parameter_without_a_gradient_stays() -> None:
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    StochasticAdamW([parameter], 1.0, 0).step()
    assert parameter.detach().tolist() == [1.0, 1.0, 1.0]
