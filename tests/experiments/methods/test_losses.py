"""The losses against independent formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="losses need unforgotten[experiments]")

from unforgotten.experiments.methods.ga import gradient_ascent
from unforgotten.experiments.methods.npo import negative_preference
from unforgotten.experiments.methods.retain import retain_divergence
from unforgotten.experiments.models.log_probs import (
    TokenLogProbs,
    cross_entropy,
    distributions,
    sequence_log_probs,
    token_log_probs,
)

U32 = 2.0**-24  # half an ulp of float32 at 1
VOCABULARY, LENGTH = 7, 5
SLACK = 64 * VOCABULARY * LENGTH * U32  # roundings of a softmax, a log and a sum over the batch, with room


def batch(seed: int) -> tuple[TokenLogProbs, Any, Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(3, LENGTH, VOCABULARY, generator=generator)
    ids = torch.randint(VOCABULARY, (3, LENGTH), generator=generator)
    mask = torch.tensor([[1] * 5, [1] * 4 + [0], [1] * 2 + [0] * 3])
    return token_log_probs(logits, ids, mask), logits, ids, mask


@pytest.mark.parametrize("seed", range(5))
def test_cross_entropy_is_what_transformers_computes(seed: int) -> None:
    scored, logits, ids, mask = batch(seed)
    labels = ids.masked_fill(mask == 0, -100)
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, VOCABULARY), labels[:, 1:].reshape(-1), ignore_index=-100
    )
    assert float(cross_entropy(scored)) == pytest.approx(float(expected), abs=SLACK)
    assert float(gradient_ascent(scored)) == -float(cross_entropy(scored))


@pytest.mark.parametrize("seed", range(5))
def test_npo_is_the_formula_on_sequences(seed: int) -> None:
    scored, *_ = batch(seed)
    reference = torch.tensor([-3.0, -8.0, -1.0])
    beta = 0.1
    terms = []
    for row in range(3):
        log_p = sum(float(scored.label[row, t]) for t in range(LENGTH - 1) if bool(scored.mask[row, t]))
        ratio = log_p - float(reference[row])
        terms.append(-2 / beta * math.log(1 / (1 + math.exp(beta * ratio))))
    expected = sum(terms) / 3
    assert float(negative_preference(scored, reference, beta)) == pytest.approx(expected, abs=SLACK / beta)


def test_npo_gradient_tends_to_ga_as_beta_vanishes() -> None:
    """d NPO = 2 sigmoid(beta ratio) d log p, which is d log p at the reference: GA on sequence log-probabilities."""
    label = torch.tensor([[-1.0, -2.0], [-0.5, -0.25]], requires_grad=True)
    scored = TokenLogProbs(label, torch.ones(2, 2, dtype=torch.bool))
    reference = sequence_log_probs(scored).detach()
    (gradient,) = torch.autograd.grad(negative_preference(scored, reference, 0.1), label)
    assert float((gradient - 0.5).abs().max()) <= SLACK


def test_npo_saturates_where_ga_does_not() -> None:
    label = torch.tensor([[-400.0]], requires_grad=True)
    scored = TokenLogProbs(label, torch.ones(1, 1, dtype=torch.bool))
    (npo,) = torch.autograd.grad(negative_preference(scored, torch.tensor([-1.0]), 0.1), label)
    (ga,) = torch.autograd.grad(gradient_ascent(scored), label)
    assert float(ga) == 1.0
    expected = 2 * math.exp(-0.1 * 399) / (1 + math.exp(-0.1 * 399))
    assert float(npo) == pytest.approx(expected, rel=SLACK)


@pytest.mark.parametrize("seed", range(5))
def test_klr_is_the_divergence_from_the_reference_to_the_model(seed: int) -> None:
    scored, logits, *_ = batch(seed)
    _, others, *_ = batch(seed + 100)
    model, reference = distributions(logits), distributions(others)
    total, count = 0.0, 0
    for row in range(3):
        for t in range(LENGTH - 1):
            if bool(scored.mask[row, t]):
                p, q = reference[row, t].exp(), model[row, t].exp()
                total += sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True))
                count += 1
    result = float(retain_divergence(model, scored.mask, reference))
    assert result == pytest.approx(total / count, abs=SLACK * abs(total))
    assert result > 0


def test_klr_is_zero_with_no_gradient_at_the_reference() -> None:
    logits = torch.randn(2, LENGTH, VOCABULARY, generator=torch.Generator().manual_seed(1))
    logits.requires_grad_()
    mask = torch.ones(2, LENGTH - 1, dtype=torch.bool)
    model = distributions(logits)
    loss = retain_divergence(model, mask, model.detach())
    (gradient,) = torch.autograd.grad(loss, logits)
    assert abs(loss.item()) <= SLACK
    assert float(gradient.abs().max()) <= SLACK


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_labels_and_their_gradients_are_those_of_the_whole_distribution(dtype: Any) -> None:
    """Rounded to bfloat16 on the way back, a gradient of at most 1 may differ by a unit in its last place, 2^-8."""
    _, logits, ids, mask = batch(7)
    logits = logits.to(dtype).requires_grad_()
    scored = token_log_probs(logits, ids, mask)
    picked = distributions(logits).gather(-1, ids[:, 1:, None])[..., 0]
    expected = picked.masked_fill(mask[:, 1:] == 0, 0.0)
    assert scored.label.dtype == torch.float32
    assert torch.equal(scored.mask, mask[:, 1:].bool())
    assert torch.equal(scored.label[~scored.mask], torch.zeros(4))
    assert float((scored.label - expected).detach().abs().max()) <= SLACK
    both = [torch.autograd.grad(x.sum(), logits)[0] for x in (scored.label, expected)]
    slack = SLACK if dtype == torch.float32 else 2.0**-8
    assert float((both[0] - both[1]).abs().max()) <= slack
    assert float(both[0].abs().max()) > 100 * slack


def test_padding_changes_no_loss() -> None:
    """But for the order of the same terms' sum, which their number decides by the width of a processor's vectors."""
    scored, logits, ids, mask = batch(3)
    longer = torch.nn.functional.pad(logits, (0, 0, 0, 2), value=9.0)
    more_ids = torch.nn.functional.pad(ids, (0, 2), value=1)
    padded = token_log_probs(longer, more_ids, torch.nn.functional.pad(mask, (0, 2)))
    order = 2 * padded.label.numel() * U32  # two sums of so many terms at most, relative to their sizes
    sizes = (scored.label * scored.mask).abs()
    assert abs(float(cross_entropy(padded)) - float(cross_entropy(scored))) <= order * sizes.sum()
    gap = (sequence_log_probs(padded) - sequence_log_probs(scored)).abs()
    assert bool((gap <= order * sizes.sum(dim=1)).all())
