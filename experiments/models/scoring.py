"""Passes of a model over documents: log-probabilities of their tokens, from which losses and Min-K % are read."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unforgotten.experiments.models.batches import Batch, Documents, in_order
from unforgotten.experiments.models.log_probs import TokenLogProbs, token_log_probs

SCORED_TOGETHER = 8
"""Documents of one batch at most: the memory of larger logits goes back to the system after each and is cleared anew."""


@torch.no_grad()
def token_scores(model: PreTrainedModel, documents: Documents, batch: int) -> list[Tensor]:
    """Return log p of each token but the first, float32 (length - 1,), for each document in the order given.

    Documents of like length stand in one batch, so that little is padded.

    Args:
        model: model in evaluation mode.
        documents: token ids.
        batch: documents of one batch, if fewer than SCORED_TOGETHER.
    """
    order = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    found: dict[int, Tensor] = {}
    for b in batches_of(model, [documents[i] for i in order], min(batch, SCORED_TOGETHER)):
        for place, label, mask in zip(b.documents, *score_batch(model, b), strict=True):
            found[order[place]] = label[mask]
    return [found[i] for i in range(len(documents))]


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
    """Yield the documents in order, padded as the model wants it."""
    return in_order(documents, size, model.config.pad_token_id or 0)


def score_batch(model: PreTrainedModel, batch: Batch) -> TokenLogProbs:
    """Return the log-probability of every token of a batch."""
    return token_log_probs(next_logits(model, batch), batch.input_ids, batch.attention_mask)


def next_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the logits of the token after each, (batch, length, vocabulary)."""
    logits: Tensor = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    return logits
