"""Passes of a model over documents: log-probabilities of their tokens, from which losses and Min-K % are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from unforgotten.experiments.models.batches import Batch, Documents, in_order, pad
from unforgotten.experiments.models.log_probs import TokenLogProbs, follower_log_probs, token_log_probs

Read = Callable[[Tensor, Tensor, Tensor], Tensor]

SCORED_TOGETHER = 8
"""Documents of one batch at most: the memory of larger logits goes back to the system after each and is cleared anew."""

LOGIT_BYTES = 2**25
"""Float32 logits of one pass at most. A document with more is passed in windows, which keep keys and values of what went
before; its scores then differ by rounding from those of one pass."""


@torch.no_grad()
def token_scores(model: PreTrainedModel, documents: Documents, batch: int) -> list[Tensor]:
    """Return log p of each token but the first, float32 (length - 1,) on the CPU, for each document in the order given.

    Documents of like length stand in one batch, so that little is padded; as many as LOGIT_BYTES allow.

    Args:
        model: model in evaluation mode.
        documents: token ids.
        batch: documents of one batch, if fewer than SCORED_TOGETHER.

    Raises:
        ValueError: a model in float16 computed what is no number.
    """
    order = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    position_bytes = 4 * vocabulary_of(model)
    found: dict[int, Tensor] = {}
    for together in fitting(order, documents, min(batch, SCORED_TOGETHER), LOGIT_BYTES // position_bytes):
        rows = [documents[i] for i in together]
        b = pad(rows, model.config.pad_token_id or 0).on(model.device)
        width = max(1, LOGIT_BYTES // (position_bytes * len(rows)))
        scored = (
            score_batch(model, b)
            if b.input_ids.shape[1] <= width
            else TokenLogProbs(read_batch(model, b, width), b.scored[:, 1:].bool())
        )
        for i, label, mask in zip(together, *scored, strict=True):
            found[i] = label[mask].cpu()
    if model.dtype == torch.float16 and not all(bool(row.isfinite().all()) for row in found.values()):
        raise ValueError(
            "dtype must hold what a model computes, got float16 with log-probabilities that are nan or inf"
        )
    return [found[i] for i in range(len(documents))]


def vocabulary_of(model: PreTrainedModel) -> int:
    """Return the number of logits of one position."""
    head = model.get_output_embeddings()
    return int(model.config.vocab_size if head is None else head.weight.shape[0])


def fitting(order: Sequence[int], documents: Documents, most: int, positions: int) -> Iterator[list[int]]:
    """Yield the documents in order, at most so many and so many padded positions together, or one alone."""
    together: list[int] = []
    for i in order:
        if together and (len(together) == most or (len(together) + 1) * len(documents[i]) > positions):
            yield together
            together = []
        together.append(i)
    if together:
        yield together


def read_batch(model: PreTrainedModel, batch: Batch, width: int, read: Read = follower_log_probs) -> Tensor:
    """Return what `read` finds of each token but the first, from passes of `width` positions each.

    From one pass where the batch is no longer, or the cache cannot grow so.

    Args:
        model: model in evaluation mode.
        batch: token ids, padded on the right.
        width: positions of one pass.
        read: function of the logits of some positions, the tokens that follow them and their mask; its axes begin with
            (batch, length).
    """
    ids, mask = batch.input_ids, batch.attention_mask
    last = ids.shape[1] - 1
    cache = DynamicCache(config=model.config)
    if last < width or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return read(next_logits(model, batch)[:, :-1], ids[:, 1:], mask[:, 1:].bool())
    found: list[Tensor] = []
    for start in range(0, last, width):
        stop = min(start + width, last)
        logits = model(
            input_ids=ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache, use_cache=True
        ).logits
        found.append(read(logits, ids[:, start + 1 : stop + 1], mask[:, start + 1 : stop + 1].bool()))
    return torch.cat(found, 1)


@torch.no_grad()
def document_losses(model: PreTrainedModel, documents: Documents, batch: int) -> Tensor:
    """Return the mean negative log-probability per token of each document, float32 (n,)."""
    losses = []
    for b in batches_of(model, documents, batch):
        scored = score_batch(model, b)
        losses.append(-scored.label.sum(-1) / scored.mask.sum(-1))
    return torch.cat(losses)


def mean_loss(model: PreTrainedModel, documents: Documents, batch: int) -> float:
    """Return the mean over documents of `document_losses`."""
    return float(document_losses(model, documents, batch).mean())


def batches_of(model: PreTrainedModel, documents: Documents, size: int) -> Iterator[Batch]:
    """Yield the documents in order, padded as the model wants it, on its device."""
    return (batch.on(model.device) for batch in in_order(documents, size, model.config.pad_token_id or 0))


def score_batch(model: PreTrainedModel, batch: Batch) -> TokenLogProbs:
    """Return the log-probability of every token of a batch that counts."""
    return token_log_probs(next_logits(model, batch), batch.input_ids, batch.scored)


def next_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the logits of the token after each, (batch, length, vocabulary)."""
    logits: Tensor = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    return logits
