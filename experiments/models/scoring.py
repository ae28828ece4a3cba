"""The log-probability of every token of given documents: one pass of a model, from which losses and Min-K % are read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unforgotten.experiments.models.batches import in_order
from unforgotten.experiments.models.log_probs import token_log_probs

SCORED_TOGETHER = 8
"""Documents of one batch at most: the memory of larger logits goes back to the system after each and is cleared anew."""


@torch.no_grad()
def token_scores(model: PreTrainedModel, documents: Sequence[Sequence[int]], batch: int) -> list[Tensor]:
    """Return log p of each token but the first, float32 (length - 1,), for each document in the order given.

    Documents of like length stand in one batch, so that little is padded.

    Args:
        model: the model, in evaluation mode.
        documents: token ids.
        batch: documents of one batch, if fewer than SCORED_TOGETHER.
    """
    order = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    size, pad_id = min(batch, SCORED_TOGETHER), model.config.pad_token_id or 0
    found: dict[int, Tensor] = {}
    for b in in_order([documents[i] for i in order], size, pad_id):
        logits = model(input_ids=b.input_ids, attention_mask=b.attention_mask, use_cache=False).logits
        scored = token_log_probs(logits, b.input_ids, b.attention_mask)
        for place, label, mask in zip(b.documents, *scored, strict=True):
            found[order[place]] = label[mask]
    return [found[i] for i in range(len(documents))]
