"""The boundary push: a crossing is the shortest move that changes one code and nothing else; the push keeps to its budget."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="methods need unforgotten[experiments]")

from unforgotten.experiments.config import BaseConfig, Storage
from unforgotten.experiments.methods.registry import METHODS
from unforgotten.experiments.methods.robust.crossings import crossings
from unforgotten.experiments.models.bases.mixture import BASES
from unforgotten.experiments.models.scoring import mean_loss
from unforgotten.experiments.models.shell import linear_names, state_of
from unforgotten.experiments.quantizers.own import own_codes, own_values
from unforgotten.theory.formats.names import format_named
from unforgotten.verification.domains.micro_target import micro_target, micro_task

KNOWN = ("int4-g64", "int4-row", "nf4-b64", "fp4-b64", "int8-row")


def drawn(seed: int, dtype: Any) -> tuple[Any, Any, Any]:
    """Weights with ties, zeros and a block of zeros; where each is to rise; which moves are made."""
    rng = np.random.default_rng(seed)
    w = rng.normal(0, 0.02, (4, 128)).astype(np.float32)
    w[0, :64] = 0.0
    w[1, 3] = w[1, 5] = 0.0
    w[2, :4] = np.abs(w[2]).max()
    rising, chosen = (torch.from_numpy(rng.random(w.shape) < p) for p in (0.5, rng.random()))
    return torch.from_numpy(w).to(dtype), rising, chosen


@given(st.integers(0, 2**16), st.sampled_from(KNOWN), st.sampled_from([torch.float32, torch.bfloat16]))
def test_whichever_are_made_each_changes_its_own_value_and_no_other(seed: int, name: str, dtype: Any) -> None:
    w, rising, chosen = drawn(seed, dtype)
    found = crossings(w, rising, format_named(name), dtype)
    assert torch.equal(found.weights.to(dtype).float(), found.weights)
    new = torch.where(chosen, found.weights.to(dtype), w)
    before, after = own_values(w, name), own_values(new, name)
    assert torch.equal(after - before, torch.where(chosen, found.changes, 0.0))
    moves = found.changes != 0
    assert int(moves.sum()) > w.numel() / 4
    assert torch.equal(moves, found.weights != w.float())
    assert torch.equal(found.changes[moves] > 0, rising[moves])
    assert torch.equal((own_codes(new, name) - own_codes(w, name)).abs() == 1, chosen & moves)


@given(st.integers(0, 2**16), st.sampled_from(KNOWN), st.sampled_from([torch.float32, torch.bfloat16]))
def test_no_shorter_move_changes_the_code(seed: int, name: str, dtype: Any) -> None:
    """One number of the dtype back towards the weight, the code is the old one."""
    w, rising, _ = drawn(seed, dtype)
    found = crossings(w, rising, format_named(name), dtype)
    back = torch.nextafter(found.weights.to(dtype), w)
    assert torch.equal(own_values(back, name), own_values(w, name))


@given(st.integers(0, 2**16))
def test_the_entry_that_sets_a_scale_stays(seed: int) -> None:
    w, rising, _ = drawn(seed, torch.float32)
    found = crossings(w, rising, format_named("int4-g64"), torch.float32)
    largest = w.reshape(-1, 64).abs().argmax(1, keepdim=True)
    assert torch.equal(found.weights.reshape(-1, 64).gather(1, largest), w.reshape(-1, 64).gather(1, largest))


def quantized_loss(model: Any, documents: Any, name: str) -> float:
    model = copy.deepcopy(model)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for key in linear_names(model):
            named[key].copy_(own_values(named[key], name))
    return mean_loss(model, documents, 2)


@pytest.mark.parametrize("storage", ["fp32", "bf16"])
def test_the_push_makes_the_quantized_model_forget_more_within_its_budget(storage: Storage) -> None:
    """The update of one small step is swallowed; what is pushed is not, and changes few weights."""
    task = micro_task(storage, max_steps=1, lr=1e-6)
    plain, pushed = micro_target(), micro_target()
    METHODS["NPO_GDR"].unlearn(plain, task, METHODS["NPO_GDR"].settings())
    method = METHODS["NPO_GDR_push"]
    settings = method.settings(format="int4-row", share=0.02, retain_budget=0.1)
    outcome = method.unlearn(pushed, task, settings)
    forget, retain = (
        [quantized_loss(model, documents, "int4-row") for model in (plain, pushed)]
        for documents in (task.forget, task.retain)
    )
    assert forget[1] > forget[0] + 0.05
    assert retain[1] <= retain[0] + 0.1 + 1e-5
    names, old = linear_names(plain), dict(plain.named_parameters())
    moved = {n: int((p != old[n]).sum()) for n, p in pushed.named_parameters()}
    assert 0 < sum(moved.values()) == outcome.settings["pushed"] <= 0.02 * sum(old[n].numel() for n in names)
    assert not any(count for n, count in moved.items() if n not in names)
    assert {p.dtype for p in pushed.parameters()} == {task.arithmetic.parameters}


def test_without_a_budget_nothing_is_pushed() -> None:
    task = micro_task(max_steps=1, lr=1e-6)
    plain, pushed = micro_target(), micro_target()
    METHODS["GA_KLR"].unlearn(plain, task, METHODS["GA_KLR"].settings())
    method = METHODS["GA_KLR_push"]
    outcome = method.unlearn(pushed, task, method.settings(share=1e-9))
    assert outcome.settings["pushed"] == 0
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), pushed.parameters(), strict=True))


def test_a_format_whose_scales_are_searched_is_refused() -> None:
    with pytest.raises(ValueError, match="format must have a scale of one of absmax"):
        crossings(torch.zeros(2, 256), torch.ones(2, 256).bool(), format_named("q4_k"), torch.float32)
    with pytest.raises(ValueError, match="format"):
        METHODS["GA_GDR_push"].settings(format="int3-x")


@pytest.mark.parametrize("name", [*KNOWN, "int8-tensor"])
def test_experts_in_one_tensor_are_crossed_and_quantized_one_by_one(name: str) -> None:
    """Of 5 x 63 weights each, so that a flat block and a tensor's scale would reach over from one to the next."""
    w = torch.randn(3, 5, 63, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 4.0, 0.1])[:, None, None]
    rising, fmt = w > 0, format_named(name)
    found, values = crossings(w, rising, fmt, torch.float32), own_values(w, name)
    for expert, up, moved, changed, value in zip(w, rising, found.weights, found.changes, values, strict=True):
        alone = crossings(expert, up, fmt, torch.float32)
        assert torch.equal(moved, alone.weights)
        assert torch.equal(changed, alone.changes)
        assert torch.equal(value, own_values(expert, name))


@pytest.mark.parametrize("method", ["NPO_GDR_push", "NPO_GDR_STE"])
def test_a_mixture_of_experts_is_unlearned(method: str) -> None:
    base, task = BASES[0].model(BaseConfig(layers=1, experts=2), 0), micro_task(max_steps=2)
    before = state_of(base)
    METHODS[method].unlearn(base, task, METHODS[method].settings())
    after = state_of(base)
    experts = [n for n in before if "experts" in n]
    assert experts
    assert not any(torch.equal(before[n], after[n]) for n in experts)
