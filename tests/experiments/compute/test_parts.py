"""A batch in parts has the loss, the gradient and the steps of the whole batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="methods need unforgotten[experiments]")

from unforgotten.experiments.compute.parts import COUNTS, Mean, parts_of
from unforgotten.experiments.compute.settings import ComputeConfig
from unforgotten.experiments.methods.reference import make_reference
from unforgotten.experiments.methods.registry import METHODS, method_named
from unforgotten.experiments.methods.settings import settings_of
from unforgotten.experiments.methods.terms import ForgetTerm, LossMethod, RetainTerm
from unforgotten.experiments.methods.view import View
from unforgotten.experiments.models.batches import Batch, pad
from unforgotten.verification.domains.micro_target import micro_documents, micro_target, micro_task

RTOL = 4 * torch.finfo(torch.float32).eps ** 0.5  # plain agreement of float32 sums in another order, relative
TERMS: dict[str, tuple[LossMethod, ForgetTerm | RetainTerm]] = {
    term.name: (method, term)
    for method in METHODS.values()
    if isinstance(method, LossMethod)
    for term in (method.forget, method.retain)
    if term is not None
}


def batch_of(documents: list[list[int]]) -> Batch:
    return pad(documents, 0, documents=range(len(documents)))


def shares(batch: Batch, mean: Mean, size: int | None, processes: int = 1) -> Iterator[list[tuple[Batch, float]]]:
    return (parts_of(batch, mean, size, process=k, processes=processes) for k in range(processes))


@pytest.mark.parametrize("mean", COUNTS)
@pytest.mark.parametrize("size", [None, 1, 2, 3])
@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_parts_hold_every_document_once_and_shares_sum_to_one(mean: Mean, size: int | None, processes: int) -> None:
    batch = batch_of(micro_documents()[:5])
    found = list(shares(batch, mean, size, processes))
    assert len({len(parts) for parts in found}) == 1  # all pass the model equally often
    counted = [part for parts in found for part in parts if part[1] > 0]
    assert sorted(k for part, _ in counted for k in part.documents) == list(range(5))
    assert sum(share for _, share in counted) == pytest.approx(1)
    assert all(len(part.input_ids) <= (size or 5) for part, _ in counted)
    for part, _ in counted:
        for row, mask, k in zip(part.input_ids, part.attention_mask, part.documents, strict=True):
            assert row[mask.bool()].tolist() == micro_documents()[k]


def test_a_document_that_the_mean_counts_as_nothing_spoils_no_share() -> None:
    """One token has no follower: alone it would be a loss of 0 / 0."""
    batch = batch_of([[5, 6, 7], [8]])
    assert [(part.documents, share) for part, share in parts_of(batch, "followers", 1)] == [((0,), 1.0)]
    assert [share for _, share in parts_of(batch, "documents", 1)] == [0.5, 0.5]


def test_a_whole_batch_is_left_as_it_is() -> None:
    batch = batch_of(micro_documents()[:3])
    for size in (None, 3, 9):
        ((part, share),) = parts_of(batch, "tokens", size)
        assert part is batch
        assert share == 1.0


def test_every_term_of_this_package_says_what_it_is_a_mean_over() -> None:
    assert {name for name, (_, term) in TERMS.items() if term.mean is None} == set()
    assert {"GA", "NPO", "GDR", "KLR", "NPO_rawlogits", "KLR_rawlogits", "SimNPO", "UNDIAL"} <= TERMS.keys()


@pytest.mark.parametrize("name", sorted(TERMS))
def test_shares_of_a_loss_add_up_to_the_loss_and_other_shares_do_not(name: str) -> None:
    method, term = TERMS[name]
    model, task = micro_target(), micro_task()
    documents = [row[:n] for row, n in zip(micro_documents()[4:], (4, 7, 12, 17), strict=True)]
    seen = make_reference(model, (documents, documents), 4, task.arithmetic).forget
    with torch.no_grad():  # away from the target, where some losses are 0
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    settings = settings_of(task, method.settings())
    batch = batch_of(documents)

    def loss(part: Batch) -> float:
        with torch.no_grad():
            return float(term.loss(View(model, part, seen), settings))

    def summed(mean: Mean) -> float:
        return math.fsum(share * loss(part) for part, share in parts_of(batch, mean, 1))

    assert term.mean is not None
    assert summed(term.mean) == pytest.approx(loss(batch), rel=RTOL, abs=0)
    others: list[Mean] = [mean for mean in COUNTS if (mean == "documents") != (term.mean == "documents")]
    assert all(summed(mean) != pytest.approx(loss(batch), rel=RTOL, abs=0) for mean in others)


def moved(method: str, **compute: Any) -> tuple[Any, int]:
    """How far a method moves the micro target in three steps of SGD, and the most documents that one pass with gradients had."""
    model, together = micro_target(), [0]
    start = torch.cat([p.detach().flatten() for p in model.parameters()])

    def see(module: Any, args: Any, named: dict[str, Any]) -> None:
        together[0] = max(together[0], len(named["input_ids"]) if torch.is_grad_enabled() else 0)

    hook = model.register_forward_pre_hook(see, with_kwargs=True)
    task = micro_task(max_steps=3, lr=0.1, batch=3, retain_batch=4, optimizer="sgd", compute=ComputeConfig(**compute))
    method_named(method).unlearn(model, task, method_named(method).settings())
    hook.remove()
    return torch.cat([p.detach().flatten() for p in model.parameters()]) - start, together[0]


@pytest.mark.parametrize("method", ["GA", "NPO_GDR", "NPO_KLR", "NPO_GDR_SURE", "GA_KLR_SAM", "GA_GDR_STE"])
def test_steps_in_parts_are_those_of_the_whole_batch(method: str) -> None:
    (whole, most), (parts, one) = moved(method), moved(method, micro_batch=1)
    assert (most, one) == (4 if "_" in method else 3, 1)
    assert torch.linalg.vector_norm(parts - whole) <= RTOL * torch.linalg.vector_norm(whole)


def test_a_loss_that_names_no_mean_is_computed_whole() -> None:
    (whole, most), (parts, also) = moved("RMU"), moved("RMU", micro_batch=1)
    assert most == also == 4
    assert torch.equal(parts, whole)


@pytest.mark.parametrize("method", ["NPO_KLR", "GA_GDR_SURE"])
def test_activations_computed_again_change_no_bit(method: str) -> None:
    from transformers.models.llama.modeling_llama import LlamaAttention

    calls: list[int] = []
    own = LlamaAttention.forward

    def counted(self: Any, *args: Any, **named: Any) -> Any:
        assert not self.training
        calls[-1] += torch.is_grad_enabled()
        return own(self, *args, **named)

    ends = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaAttention, "forward", counted)
        for on in (False, True):
            calls.append(0)
            ends.append(moved(method, gradient_checkpointing=on)[0])
    assert torch.equal(*ends)
    assert calls[1] > calls[0] > 0


def test_a_model_without_such_layers_is_refused() -> None:
    from unforgotten.experiments.compute.checkpointing import checkpointed

    other: Any = torch.nn.Linear(2, 2)
    rule = r"^compute\.gradient_checkpointing must be off for Linear, "
    with pytest.raises(ValueError, match=rule), checkpointed(other, enabled=True):
        pass
