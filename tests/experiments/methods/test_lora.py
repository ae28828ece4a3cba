"""LoRA: what moves is of low rank; without peft, one line says what to install."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="methods need unforgotten[experiments]")

from unforgotten.experiments.config import Storage
from unforgotten.experiments.methods.registry import METHODS
from unforgotten.experiments.models.scoring import mean_loss
from unforgotten.experiments.models.shell import linear_names
from unforgotten.verification.domains.micro_target import micro_target, micro_task

NAMES = tuple(name for name in METHODS if name.endswith("_LoRA"))


def test_every_pair_has_one_and_it_needs_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {name.removesuffix("_LoRA") for name in NAMES} == {"GA", "GA_GDR", "GA_KLR", "NPO", "NPO_GDR", "NPO_KLR"}
    find = importlib.util.find_spec

    def without_peft(name: str, *more: Any) -> Any:
        return None if name == "peft" else find(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", without_peft)
    method = METHODS["NPO_LoRA"]
    with pytest.raises(ValueError, match=r"^peft is missing: pip install 'unforgotten\[lora\]'$"):
        method.unlearn(micro_target(), micro_task(), method.settings())


@pytest.mark.parametrize("storage", ["fp32", "bf16", "bf16-sr"])
def test_it_forgets_by_an_update_of_low_rank(storage: Storage) -> None:
    """In float32 the update of each matrix has the rank asked for; every other weight is as it was."""
    pytest.importorskip("peft", reason="needs unforgotten[lora]")
    model, method, task = micro_target(), METHODS["NPO_GDR_LoRA"], micro_task(storage, max_steps=20, lr=1e-2)
    task.arithmetic.cast(model)
    before, old = mean_loss(model, task.forget, 4), {n: p.detach().clone() for n, p in model.named_parameters()}
    outcome = method.unlearn(model, task, method.settings(rank=2))
    assert outcome.forget_loss > before + 0.1
    assert outcome.settings["rank"] == 2
    new = dict(model.named_parameters())
    assert list(new) == list(old)
    assert all(p.requires_grad and p.dtype == task.arithmetic.parameters for p in new.values())
    matrices = linear_names(model)
    for name, parameter in new.items():
        update = parameter.detach().double() - old[name].double()
        if name not in matrices:
            assert not update.any()
        elif storage == "fp32":  # rounded: a tail of half an ulp of the weights in each entry
            tail = torch.linalg.svdvals(update)[2]
            assert float(tail) <= 2.0**-23 * float(old[name].norm() + update.norm())
            assert update.any()
