"""SURE: what is masked stays, bit for bit; a threshold of 0 is no mask; each kind of mask is its formula."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="methods need unforgotten[experiments]")

from unforgotten.experiments.config import Autocast, Storage
from unforgotten.experiments.methods.masked.saliency import Part, on, part_norms, salient
from unforgotten.experiments.methods.masked.settings import SureConfig
from unforgotten.experiments.methods.masked.sure import SureStep
from unforgotten.experiments.methods.registry import METHODS
from unforgotten.experiments.methods.steps import Losses
from unforgotten.experiments.models.scoring import mean_loss
from unforgotten.verification.domains.micro_target import VOCABULARY, micro_target, micro_task

U32 = 2.0**-24  # half an ulp of float32 at 1
SUMS = 128 + VOCABULARY + 4 * 64  # terms: tokens of the documents, logits, and widths that a gradient passes on its way
GRADIENT_SLACK = 2 * SUMS * U32  # of the norms of two gradients whose sums are taken in other orders, relative
DIVERGENCE_SLACK = 64 * 7 * U32  # roundings of exponentials, logarithms and sums over seven logits, with room
PARTS: tuple[Part, ...] = ("module", "row", "neuron", "layer")
NAMES = tuple(name for name in METHODS if name.endswith("_SURE"))
Weights = Mapping[str, Any]


def weights(model: Any) -> dict[str, Any]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def bits(x: Any) -> Any:
    return x.view({torch.float32: torch.int32, torch.bfloat16: torch.int16}[x.dtype])


def equal(one: Any, other: Any) -> bool:
    return torch.equal(bits(one), bits(other))


def test_every_pair_has_one() -> None:
    pairs = {"GA", "GA_GDR", "GA_KLR", "NPO", "NPO_GDR", "NPO_KLR"}
    assert set(NAMES) == {f"{pair}_SURE" for pair in pairs}
    for name in NAMES:
        assert "2410.16454" in METHODS[name].source


def test_masked_parts_stay_bit_for_bit_through_50_steps_with_momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW would move them: before its step some masked weights have a first moment, for the masks differ by step."""
    target = micro_target()
    found: list[tuple[dict[str, Any], Weights, Weights]] = []
    ended = SureStep.end
    before: dict[str, Any] = {}
    would_move = 0

    def end(self: SureStep, model: Any) -> None:
        nonlocal before, would_move
        stepped = weights(model)
        ended(self, model)
        after = weights(model)
        masks = {name: on(m, after[name]).expand_as(after[name]) for name, m in self._masks.items()}
        would_move += sum(int((bits(stepped[n]) != bits(before[n]))[~m].sum()) for n, m in masks.items())
        found.append((masks, before, after))
        before = after

    monkeypatch.setattr(SureStep, "end", end)
    for storage in ("fp32", "bf16", "bf16-sr"):
        found.clear()
        would_move = 0
        model, task = copy.deepcopy(target), micro_task(storage, max_steps=50)
        task.arithmetic.cast(model)
        before = weights(model)
        METHODS["NPO_GDR_SURE"].unlearn(model, task, SureConfig(mask="row", threshold=90.0))
        assert len(found) == 50
        assert would_move > 1000
        for masks, old, new in found:
            assert all(torch.equal(bits(old[n])[~m], bits(new[n])[~m]) for n, m in masks.items())
            assert any(not equal(old[n], new[n]) for n in masks)


@pytest.mark.parametrize("part", ["module", "neuron", "layer"])
@pytest.mark.parametrize("storage", ["fp32", "bf16", "bf16-sr"])
def test_a_fixed_mask_leaves_what_it_masks_as_the_target_has_it(
    part: Part, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = micro_target()
    made: list[SureStep] = []
    begin = SureStep.begin

    def recorded(self: SureStep, *arguments: Any) -> None:
        made.append(self)
        begin(self, *arguments)

    monkeypatch.setattr(SureStep, "begin", recorded)
    task = micro_task(storage, max_steps=50)
    task.arithmetic.cast(target)
    old = weights(target)
    outcome = METHODS["GA_KLR_SURE"].unlearn(target, task, SureConfig(mask=part, threshold=60.0))
    new = weights(target)
    masks = {name: on(m, new[name]).expand_as(new[name]) for name, m in made[0]._masks.items()}
    assert any((~m).any() for m in masks.values())
    assert any(m.any() for m in masks.values())
    for name, mask in masks.items():
        assert torch.equal(bits(old[name])[~mask], bits(new[name])[~mask]), name
    assert any(not equal(old[n], new[n]) for n in masks)
    free = sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
    assert outcome.settings["mask_threshold"] == 60.0
    assert outcome.settings["updated_share"] == pytest.approx(free, rel=len(masks) * 2.0**-50)
    assert 0 < free < 1


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("storage", "autocast"), [("fp32", "none"), ("fp32", "bf16"), ("bf16", "none"), ("bf16-sr", "none")]
)
def test_a_threshold_of_0_is_no_mask_bit_for_bit(part: Part, storage: Storage, autocast: Autocast) -> None:
    target = micro_target()
    plain, task = copy.deepcopy(target), micro_task(storage, max_steps=6, autocast=autocast)
    shares = []
    for model, name, settings in (
        (plain, "NPO_KLR", METHODS["NPO_KLR"].settings()),
        (target, "NPO_KLR_SURE", SureConfig(mask=part, threshold=0.0)),
    ):
        shares.append(METHODS[name].unlearn(model, task, settings).settings.get("updated_share"))
    assert shares == [None, 1.0]
    ours, theirs = weights(target), weights(plain)
    assert all(equal(ours[name], theirs[name]) for name in theirs)


def test_the_module_mask_is_that_of_the_whole_forget_set_at_the_target() -> None:
    """By hand: the documents one by one, GA's loss; batches of one weigh every document alike, so do batches of two."""
    target = micro_target()
    task = micro_task(max_steps=1, batch=1)
    expected: dict[str, Any] = dict.fromkeys(dict(target.named_parameters()), 0.0)
    for row in task.forget:
        target.zero_grad()
        ids = torch.tensor([row])
        logits = target(input_ids=ids).logits[0, :-1]
        (-torch.nn.functional.cross_entropy(logits, ids[0, 1:]) / len(task.forget)).backward()
        expected = {name: expected[name] + torch.clone(p.grad) for name, p in target.named_parameters()}
    target.zero_grad()
    sizes = {name: float(g.norm()) for name, g in expected.items()}
    made: list[Any] = []

    class Recorder(SureStep):
        def _find(self, gradients: Any) -> None:
            made.append({name: g.clone() for name, g in gradients.items()})
            super()._find(gradients)

    from unforgotten.experiments.methods.ga import GA
    from unforgotten.experiments.methods.terms import by_loss

    by_loss(GA, None).descend(target, task, SureConfig(), Recorder("module", 75.0))
    assert len(made) == 1
    for name, size in sizes.items():
        assert float(made[0][name].norm()) == pytest.approx(size, rel=GRADIENT_SLACK)
    kept = salient(made[0], "module", 75.0)
    least = np.percentile(list(sizes.values()), 75.0)
    assert {n for n, m in kept.items() if m} == {n for n, s in sizes.items() if s >= least * (1 - GRADIENT_SLACK)}


NAMED = {
    "model.embed_tokens.weight": (5, 3),
    "model.layers.0.q.weight": (4, 3),
    "model.layers.0.q.bias": (4,),
    "model.layers.1.q.weight": (4, 3),
    "model.layers.10.q.weight": (4, 3),
    "model.norm.weight": (3,),
}


def gradients_of(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in NAMED.items()}


@given(st.integers(0, 2**16), st.sampled_from(PARTS), st.floats(0, 99))
def test_a_mask_is_the_formula(seed: int, part: Part, threshold: float) -> None:
    """Each weight moves if the norm over the weights that share its part is at least the percentile of the norms."""
    gradients = gradients_of(seed)
    groups: dict[Any, list[float]] = {}

    def part_of(name: str, row: int) -> Any:
        module = name.rpartition(".")[0]
        layer = ".".join(name.split(".")[:3]) if ".layers." in name else module
        return {"module": module, "layer": layer, "row": (name, row), "neuron": (module, row)}[part]

    for name, gradient in gradients.items():
        for row, values in enumerate(gradient.reshape(len(gradient), -1).tolist()):
            groups.setdefault(part_of(name, row), []).extend(values)
    sizes = {key: np.sqrt(np.sum(np.square(np.array(values)))) for key, values in groups.items()}
    least = np.percentile(list(sizes.values()), threshold)
    masks = salient(gradients, part, threshold)
    for name, gradient in gradients.items():
        mask = on(masks[name], gradient).expand_as(gradient).reshape(len(gradient), -1)
        for row in range(len(gradient)):
            size = sizes[part_of(name, row)]
            if abs(size - least) > 1e-12 * least:  # a percentile at a norm itself may differ by its sum's last bit
                assert bool(mask[row].all()) == bool(mask[row].any()) == bool(size >= least)


@given(st.integers(0, 2**16), st.sampled_from(PARTS), st.floats(0, 99), st.floats(0, 99))
def test_a_higher_threshold_takes_no_more(seed: int, part: Part, one: float, other: float) -> None:
    low, high = sorted((one, other))
    few, many = (salient(gradients_of(seed), part, t) for t in (high, low))
    assert all(bool((many[name] | ~few[name]).all()) for name in few)
    assert all(bool(m.all()) for m in salient(gradients_of(seed), part, 0.0).values())
    assert any(bool(m.any()) for m in few.values())


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", ["GA_SURE", "NPO_KLR_SURE"])
def test_it_forgets(name: str, part: Part) -> None:
    target = micro_target()
    task = micro_task(max_steps=20)
    before = mean_loss(target, task.forget, 4)
    outcome = METHODS[name].unlearn(target, task, SureConfig(mask=part, threshold=50.0, lr=2e-3))
    assert outcome.forget_loss > before + 0.1
    assert outcome.settings["lr"] == 2e-3
    assert outcome.settings["mask"] == part
    assert outcome.settings["threshold"] == 50.0


def test_the_released_step_goes_along_twice_the_forget_gradient() -> None:
    from unforgotten.experiments.methods.masked.as_released import DoubledStep

    model = torch.nn.Linear(3, 1, bias=False)
    x, y = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([8.0, 16.0, -2.0])

    def both() -> tuple[Any, Any]:
        forget = (model.weight[0] * x).sum()
        return forget, forget + 0.5 * (model.weight[0] * y).sum()

    losses = Losses(lambda: both()[0], None, both, lambda loss: loss.backward())
    DoubledStep().gradients(model, losses)
    assert torch.equal(model.weight.grad[0], 2 * x + 0.5 * y)


def test_what_was_released_moves_every_weight_that_has_a_gradient() -> None:
    target = micro_target()
    old = weights(target)
    method = METHODS["GA_GDR_SURE_as_released"]
    outcome = method.unlearn(target, micro_task(max_steps=8), method.settings())
    new = weights(target)
    matrices = [name for name in old if "proj" in name]
    assert all(int((old[n] == new[n]).sum()) < old[n].numel() / 1000 for n in matrices)
    assert outcome.forget_loss > 0
    assert "not the published method" in method.source


def test_the_released_retain_loss_is_summed_over_a_document() -> None:
    from unforgotten.experiments.methods.masked.as_released import summed_divergence

    z, reference = (torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    real = torch.tensor([[1] * 5, [1] * 3 + [0] * 2]).bool()
    total = 0.0
    for row, column in zip(*np.nonzero(real.numpy()), strict=True):
        p, q = (x[row, column].double().softmax(-1).numpy() for x in (reference, z))
        total += float(np.sum(p * np.log(p / q)))
    assert float(summed_divergence(z, real, reference)) == pytest.approx(total / 2, rel=DIVERGENCE_SLACK)


def test_parts_of_a_module_with_other_rows_are_refused() -> None:
    gradients = {"experts.up": torch.ones(3, 2), "experts.down": torch.ones(4, 2)}
    with pytest.raises(ValueError, match="experts: its parameters must have one number of rows, got 3 and 4"):
        part_norms(gradients, "neuron")
    with pytest.raises(ValueError, match="mask must be one of module, row, neuron, layer, got mask='head'"):
        part_norms(gradients, "head")  # type: ignore[arg-type]
