"""The losses of the released code against torch's own functions, and what is wrong with them."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="losses need unforgotten[experiments]")
from torch.nn import functional

from unforgotten.experiments.arms.arithmetic import Arithmetic
from unforgotten.experiments.config import BaseConfig
from unforgotten.experiments.methods.raw_logits import raw_divergence, raw_preference
from unforgotten.experiments.methods.reference import make_reference
from unforgotten.experiments.methods.registry import METHODS
from unforgotten.experiments.models.bases.llama import TINY
from unforgotten.experiments.models.batches import pad
from unforgotten.experiments.models.scoring import next_logits

VOCABULARY, LENGTH, ROWS = 7, 5, 3
REAL = torch.tensor([[1] * 5, [1] * 4 + [0], [1] * 2 + [0] * 3]).bool()
EXP_QUOTIENT = 4 * 2.0**-24  # an exponential (two roundings), a division and a product
SLACK = 64 * VOCABULARY * LENGTH * ROWS * 2.0**-24  # roundings of exp, a product and a sum over the batch, with room


def logits(seed: int) -> Any:
    return 3 * torch.randn(ROWS, LENGTH, VOCABULARY, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(5))
def test_without_padding_they_are_what_the_released_code_calls(seed: int) -> None:
    z, reference, all_real = logits(seed), logits(seed + 100), torch.ones(ROWS, LENGTH, dtype=torch.bool)
    divergence = functional.kl_div(z, reference, reduction="batchmean", log_target=True)
    size = float((reference.exp() * (reference - z)).abs().sum() / ROWS)
    assert float(raw_divergence(z, all_real, reference)) == pytest.approx(float(divergence), abs=SLACK * size)
    preference = -functional.logsigmoid(0.1 * (reference - z)).mean() * 2 / 0.1
    assert float(raw_preference(z, all_real, reference, 0.1)) == pytest.approx(float(preference), rel=SLACK)


def test_padding_counts_in_neither() -> None:
    z, reference = logits(0), logits(1)
    other = torch.where(REAL[..., None], z, torch.full_like(z, 50.0))
    assert torch.equal(raw_divergence(z, REAL, reference), raw_divergence(other, REAL, reference))
    assert torch.equal(raw_preference(z, REAL, reference, 0.1), raw_preference(other, REAL, reference, 0.1))


def test_the_divergence_has_no_minimum_at_the_reference() -> None:
    """Its gradient is -exp(z_ref) / documents wherever the model is."""
    reference = logits(2)
    for z in (reference.clone(), logits(3)):
        z.requires_grad_()
        (gradient,) = torch.autograd.grad(raw_divergence(z, REAL, reference), z)
        expected = torch.where(REAL[..., None], -reference.exp() / ROWS, torch.zeros(()))
        assert torch.allclose(gradient, expected, rtol=EXP_QUOTIENT, atol=0)


def test_the_preference_pushes_every_logit_down_alike_at_the_reference() -> None:
    """Each by 1 / (tokens * vocabulary), which a softmax does not see."""
    z = logits(4)
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(raw_preference(z, REAL, z.detach(), 0.1), z)
    expected = torch.where(REAL[..., None], torch.full_like(z, 1 / (int(REAL.sum()) * VOCABULARY)), torch.zeros(()))
    assert float((gradient - expected).abs().max()) <= SLACK


def test_the_target_s_logits_are_its_own() -> None:
    """From what its output layer was given, or whole where that layer's output is scaled after it."""
    documents = ((1, 2, 3, 4), (5, 6, 7), (8, 9, 10, 11, 12))
    model = TINY.model(BaseConfig(vocabulary=300, width=64, feed_forward=64, layers=1, heads=2, positions=64), seed=0)
    batch = pad(documents, 0)
    plain = model.forward
    for scaled in (False, True):

        def forward(*args: Any, scaled: bool = scaled, **kwargs: Any) -> Any:
            out = plain(*args, **kwargs)
            out.logits = out.logits / 2 if scaled else out.logits
            return out

        model.forward = forward
        with torch.no_grad():
            expected = next_logits(model, batch)
        reference = make_reference(model, (documents, documents), 3, Arithmetic(torch.float32, "none", "native"))
        assert reference.retain.hidden[0].shape[-1] == (300 if scaled else 64)
        real = batch.attention_mask.bool()
        assert torch.equal(reference.retain.logits(range(3))[real], expected[real])


def test_the_methods_name_what_they_are_and_where_from() -> None:
    raw = {name: method for name, method in METHODS.items() if "rawlogits" in name}
    assert set(raw) == {
        "GA_KLR_rawlogits",
        "NPO_KLR_rawlogits",
        "NPO_rawlogits",
        "NPO_rawlogits_GDR",
        "NPO_rawlogits_KLR",
        "NPO_rawlogits_KLR_rawlogits",
    }
    for method in raw.values():
        assert "as released" in method.statement
        assert "not a published loss" in method.source
