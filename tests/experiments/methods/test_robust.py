"""Optimizers, SAM and straight-through training: each step is its formula, and leaves between steps what the arm keeps."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="methods need unforgotten[experiments]")

from unforgotten.experiments.arms.arm import KEPT
from unforgotten.experiments.config import Optimizer, Storage, UnlearningConfig
from unforgotten.experiments.methods.optimizers import ClampedAdamW, Rule, StatelessDescent, make_optimizer
from unforgotten.experiments.methods.registry import METHODS
from unforgotten.experiments.methods.robust.sam import SamStep
from unforgotten.experiments.methods.robust.straight_through import StraightThroughStep
from unforgotten.experiments.methods.settings import settings_of
from unforgotten.experiments.methods.steps import Losses
from unforgotten.experiments.models.scoring import mean_loss
from unforgotten.experiments.models.shell import linear_names
from unforgotten.experiments.quantizers.own import own_values
from unforgotten.theory.geometry.dead_zone import frozen_exponent
from unforgotten.verification.domains.micro_target import micro_target, micro_task

U32 = 2.0**-24  # half an ulp of float32 at 1
ROOT_SUMS = 4  # roundings of n squares add up like a walk, to about sqrt(n) of them; with room
STORAGES: tuple[Storage, ...] = ("fp32", "bf16", "bf16-sr")
PAIRS = ("GA", "GA_GDR", "GA_KLR", "NPO", "NPO_GDR", "NPO_KLR")


def weights(model: Any) -> dict[str, Any]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@given(st.integers(0, 2**16), st.sampled_from(["sgd", "sign"]), st.floats(1e-6, 1.0))
def test_a_step_in_float32_is_torch_s_own(seed: int, rule: Rule, lr: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    w, g = (torch.randn(5, 3, generator=generator) for _ in range(2))
    g[0, 0] = 0.0
    ours, theirs = (torch.nn.Parameter(w.clone()) for _ in range(2))
    ours.grad, theirs.grad = g.clone(), g.clone() if rule == "sgd" else g.sign()
    StatelessDescent([ours], rule, lr, "fp32", 0).step()
    torch.optim.SGD([theirs], lr=lr).step()
    assert torch.equal(ours, theirs)
    assert rule == "sgd" or ours[0, 0].item() == w[0, 0].item()


@given(st.integers(0, 2**16), st.sampled_from(["sgd", "sign"]))
def test_a_step_in_bfloat16_is_rounded_once(seed: int, rule: Rule) -> None:
    """To nearest in the arm bf16; to one of both neighbours in bf16-sr."""
    generator = torch.Generator().manual_seed(seed)
    w, g = (torch.randn(64, generator=generator).bfloat16() for _ in range(2))
    step = g.float() if rule == "sgd" else g.float().sign()
    exact = w.float() - 1e-3 * step
    for storage in ("bf16", "bf16-sr"):
        parameter = torch.nn.Parameter(w.clone())
        parameter.grad = g.clone()
        StatelessDescent([parameter], rule, 1e-3, storage, 1).step()
        found = parameter.detach()
        if storage == "bf16":
            assert torch.equal(found, exact.bfloat16())
        else:
            assert bool(((found.float() - exact).abs() <= 2.0**-7 * exact.abs()).all())


def late_gradients(count: int, seed: int) -> list[Any]:
    """A hundred small gradients, then five large ones along one side for half of the weights: m / sqrt(v) becomes 1.8."""
    generator = torch.Generator().manual_seed(seed)
    found = [1e-3 * torch.randn(count, generator=generator) for _ in range(105)]
    side = torch.randn(count, generator=generator).sign()
    side[1::2] = 0.0
    return [one + side if i >= 100 else one for i, one in enumerate(found)]


def moved_by(kind: Any, w: Any, gradients: list[Any]) -> list[Any]:
    """A parameter before the first step and after each."""
    parameter = torch.nn.Parameter(w.clone())
    optimizer, found = kind([parameter]), [w.clone()]
    for gradient in gradients:
        parameter.grad = gradient.to(w.dtype)
        optimizer.step()
        found.append(parameter.detach().clone())
    return found


LR = 1e-5
APART = 2.0**-5
"""Distance from lr, as a share, that the roundings of a bfloat16 step do not cross: a few of 2^-9 each."""


@given(st.integers(0, 2**16), st.sampled_from(["float32", "bfloat16"]))
def test_a_step_of_at_most_lr_is_torch_s_and_a_larger_one_is_lr(seed: int, dtype: str) -> None:
    """From one state; AdamW's own step is computed in float64 from its moments, which are rounded, hence APART."""
    w = (0.02 * torch.randn(64, generator=torch.Generator().manual_seed(seed))).to(getattr(torch, dtype))
    *early, last = late_gradients(64, seed + 1)
    theirs = torch.nn.Parameter(w)
    plain = torch.optim.AdamW([theirs], lr=LR, weight_decay=0.0)
    for gradient in early:
        theirs.grad = gradient.to(w.dtype)
        plain.step()
    before = theirs.detach().clone()
    ours = torch.nn.Parameter(before.clone())
    clamped = ClampedAdamW([ours], LR)
    clamped.load_state_dict(copy.deepcopy(plain.state_dict()))
    for parameter, optimizer in ((theirs, plain), (ours, clamped)):
        parameter.grad = last.to(w.dtype)
        optimizer.step()
    state, count = plain.state[theirs], len(early) + 1
    mean, square = (state[name].double() for name in ("exp_avg", "exp_avg_sq"))
    step = LR * mean / (1 - 0.9**count) / ((square / (1 - 0.999**count)).sqrt() + 1e-8)
    small, large = step.abs() < LR * (1 - APART), step.abs() > LR * (1 + APART)
    assert bool(small.any())
    assert bool(large.any())
    assert torch.equal(ours[small], theirs[small])
    expected = (before.double() - step.sign() * LR)[large]
    half = torch.finfo(w.dtype).eps / 2 * (expected.abs() + LR)
    assert bool(((ours.detach()[large].double() - expected).abs() <= half * (1 + APART)).all())


def test_clamped_steps_leave_what_lies_beyond_the_edge_where_it_is() -> None:
    """T4: a step of lr moves no bfloat16 at or beyond the edge; AdamW's larger ones move some."""
    edge = math.ldexp(1.0, frozen_exponent(LR, "bfloat16"))
    w = torch.linspace(-0.05, 0.05, 4096).bfloat16()
    gradients = late_gradients(4096, 3)
    far = w.float().abs() > edge
    ours = moved_by(lambda ps: ClampedAdamW(ps, LR), w, gradients)[-1]
    theirs = moved_by(lambda ps: torch.optim.AdamW(ps, lr=LR, weight_decay=0.0), w, gradients)[-1]
    assert torch.equal(ours[far], w[far])
    assert not torch.equal(theirs[far], w[far])
    assert not torch.equal(ours[~far], w[~far])


def test_clamped_steps_round_to_nearest_by_torch_s_own_adamw() -> None:
    model = micro_target()
    refused: list[tuple[Storage, str, str]] = [
        ("bf16-sr", "plain", "must round to nearest"),
        ("bf16", "fused", "compute.adamw plain"),
    ]
    for storage, kind, rule in refused:
        task = micro_task(storage, optimizer="adamw-clamped")
        task = replace(task, compute=task.compute.model_copy(update={"adamw": kind}))
        settings = settings_of(task, METHODS["NPO_GDR"].settings())
        with pytest.raises(ValueError, match=rule):
            make_optimizer(model, settings, task)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("optimizer", ["sgd", "sign"])
def test_an_optimizer_is_a_setting_of_every_arm(optimizer: Optimizer, storage: Storage) -> None:
    model, task = (
        micro_target(),
        micro_task(storage, max_steps=15, lr={"sgd": 0.5, "sign": 2e-3}[optimizer], optimizer=optimizer),
    )
    task.arithmetic.cast(model)
    before = mean_loss(model, task.forget, 4)
    outcome = METHODS["NPO_GDR"].unlearn(model, task, METHODS["NPO_GDR"].settings())
    assert outcome.forget_loss > before + 0.1
    assert outcome.settings["optimizer"] == optimizer
    assert {p.dtype for p in model.parameters()} == {KEPT[storage].dtype}


def test_a_configuration_of_adamw_is_written_as_before() -> None:
    settings: dict[str, Any] = {"methods": {}, "lr": {"fp32": 1.0}, "max_steps": {"fp32": 1}, "stop_forget_loss": 1.0}
    written = UnlearningConfig(**settings).model_dump_json()
    assert "optimizer" not in written
    other = UnlearningConfig(**settings, optimizer="sign")
    assert json.loads(other.model_dump_json())["optimizer"] == "sign"
    assert UnlearningConfig.model_validate_json(other.model_dump_json()) == other
    with pytest.raises(ValueError, match="optimizer"):
        UnlearningConfig(**{**settings, "optimizer": "lion"})


def _absent() -> Any:
    raise AssertionError("both losses of one computation were asked for")


def one_weight(value: float) -> Any:
    model = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[value, 0.0]]))
    return model


def test_sam_by_hand() -> None:
    """L = w^2 / 2 at w = 2, rho 0.5: the gradient at 2.5 is 2.5; the retain loss 3 w adds 3, at 2."""
    model = one_weight(2.0)
    seen: list[float] = []

    def forget() -> Any:
        seen.append(float(model.weight[0, 0].detach()))
        return 0.5 * model.weight[0, 0] ** 2

    def retain() -> Any:
        seen.append(float(model.weight[0, 0].detach()))
        return 3 * model.weight[0, 0]

    SamStep(0.5).gradients(model, Losses(forget, retain, lambda: (forget(), retain()), lambda loss: loss.backward()))
    assert seen == [2.0, 2.5, 2.0]
    assert model.weight.grad.tolist() == [[5.5, 0.0]]
    assert model.weight.tolist() == [[2.0, 0.0]]


def test_sam_at_a_gradient_of_0_perturbs_nothing() -> None:
    model = one_weight(0.0)
    losses = Losses(lambda: 0.5 * model.weight[0, 0] ** 2, None, _absent, lambda loss: loss.backward())
    SamStep(0.5).gradients(model, losses)
    assert model.weight.grad.tolist() == [[0.0, 0.0]]


def test_the_perturbation_is_as_long_as_rho() -> None:
    """Exact steps are those of a float64 norm; a perturbed weight is off by its own rounding, and by the norm's."""
    model, rho, moved = micro_target(), 0.05, []
    before = weights(model)
    exact = {n: w.cos().double() for n, w in before.items()}
    norm = math.sqrt(sum(float(g.square().sum()) for g in exact.values()))
    count = sum(g.numel() for g in exact.values())

    def forget() -> Any:
        moved.append({n: p.detach().double() - before[n].double() for n, p in model.named_parameters()})
        return sum((p * p.detach().cos()).sum() for p in model.parameters())

    SamStep(rho).gradients(model, Losses(forget, None, _absent, lambda loss: loss.backward()))
    assert all(not step.any() for step in moved[0].values())
    largest = max(float(w.abs().max()) for w in before.values()) + rho
    rounding, sums = U32 * largest, ROOT_SUMS * math.sqrt(count) * U32
    for n, step in moved[1].items():
        expected = rho * exact[n] / norm
        slack = rounding + sums * float(expected.abs().max())
        assert float((step - expected).abs().max()) <= slack
    length = math.sqrt(sum(float(s.square().sum()) for s in moved[1].values()))
    assert length == pytest.approx(rho, abs=math.sqrt(count) * rounding + sums * rho)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_straight_through_passes_the_gradient_of_the_quantized_model_back() -> None:
    """The loss is that at Q(w), its gradient in Q(w) lands on w, and w is what it was."""
    model = micro_target()
    before, names = weights(model), set(linear_names(model))
    quantized = {n: own_values(w, "int4-g64") if n in names else w for n, w in before.items()}
    seen: dict[str, Any] = {}

    def both() -> Any:
        seen.update(weights(model))
        loss = sum((p**2).sum() / 2 for p in model.parameters())
        return loss, loss

    losses = Losses(lambda: both()[0], None, both, lambda loss: loss.backward())
    StraightThroughStep(["int4-g64"], 0).gradients(model, losses)
    assert any(not torch.equal(quantized[n], before[n]) for n in names)
    for name, parameter in model.named_parameters():
        assert torch.equal(seen[name], quantized[name])
        assert torch.equal(parameter.grad, quantized[name])
        assert torch.equal(parameter, before[name])


def test_formats_are_drawn_from_the_list_and_none_is_the_plain_step() -> None:
    task = micro_task(max_steps=5)
    plain, other = micro_target(), micro_target()
    METHODS["NPO_KLR"].unlearn(plain, task, METHODS["NPO_KLR"].settings())
    method = METHODS["NPO_KLR_STE"]
    outcome = method.unlearn(other, task, method.settings(formats=("none",)))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters(), strict=True))
    assert outcome.settings["formats"] == ("none",)
    assert outcome.settings["optimizer"] is None
    with pytest.raises(ValueError, match="int4-g6x"):
        method.settings(formats=("int4-g6x",))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("name", [f"{pair}_{suffix}" for pair in ("GA_KLR", "NPO") for suffix in ("SAM", "STE")])
def test_it_forgets_in_every_arm(name: str, storage: Storage) -> None:
    model, method, task = micro_target(), METHODS[name], micro_task(storage, max_steps=15, lr=2e-3)
    task.arithmetic.cast(model)
    before = mean_loss(model, task.forget, 4)
    outcome = method.unlearn(model, task, method.settings())
    assert outcome.forget_loss > before + 0.1
    assert {p.dtype for p in model.parameters()} == {task.arithmetic.parameters}


def test_straight_through_training_forgets_in_the_format() -> None:
    task = micro_task(max_steps=15, lr=2e-3)
    model, method = micro_target(), METHODS["NPO_GDR_STE"]
    method.unlearn(model, task, method.settings(formats=("int4-row",)))
    quantized, old = copy.deepcopy(model), micro_target()
    with torch.no_grad():
        for each in (quantized, old):
            for name in linear_names(each):
                p = dict(each.named_parameters())[name]
                p.copy_(own_values(p, "int4-row"))
    assert mean_loss(quantized, task.forget, 4) > mean_loss(old, task.forget, 4) + 0.1


def test_every_pair_has_both() -> None:
    for suffix in ("SAM", "STE"):
        assert {name for name in METHODS if name.endswith(f"_{suffix}")} == {f"{pair}_{suffix}" for pair in PAIRS}
