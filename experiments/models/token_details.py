"""What a whole distribution says of the token that follows: its log-probability, its standing, and whether it is the likeliest.

In go documents; out comes one row a token but the first, columns LABEL, STANDING and GREEDY:

    token_details(model, [[1, 5, 9]], 8)[0][:, GREEDY]
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from unforgotten.experiments.models.batches import Documents, pad
from unforgotten.experiments.models.scoring import LOGIT_BYTES, SCORED_TOGETHER, fitting, read_batch, vocabulary_of

LABEL, STANDING, GREEDY = range(3)
"""Columns: log-probability in nats; standing, see `standings`; 1 where the token is the likeliest, else 0."""

SPREAD_FLOOR = 1e-3
"""Least spread that a standing is divided by: below, the distribution is flat or one token has all of it, to rounding."""

COPIES = 4
"""Float32 copies of the logits in memory at most."""


def standings(log_p: Tensor, followers: Tensor) -> Tensor:
    """Return (log p(y) - mu) / sigma, mu and sigma the mean and deviation of log p(z) for z drawn from p.

    sigma is at least SPREAD_FLOOR. The source is Zhang et al. 2024 (arXiv 2404.02936), the score of a token in Min-K%++.

    Args:
        log_p: normalized log-probabilities, (..., vocabulary); -inf counts as a token that is never drawn.
        followers: tokens y, (...).
    """
    finite = log_p.clamp(min=-1e4)  # p is 0 there, and 0 times -inf would be none
    p = finite.exp()
    mean = (p * finite).sum(-1)
    spread = (p * (finite - mean[..., None]).square()).sum(-1).sqrt()
    label = finite.gather(-1, followers[..., None])[..., 0]
    return (label - mean) / spread.clamp(min=SPREAD_FLOOR)


def read_details(logits: Tensor, followers: Tensor, mask: Tensor) -> Tensor:
    """Return the three columns of each position, float32 (batch, length, 3), of no meaning where the mask is False."""
    log_p = logits.float().log_softmax(-1)
    label = log_p.gather(-1, followers[..., None])[..., 0]
    greedy = (log_p.argmax(-1) == followers).float()
    return torch.stack((label, standings(log_p, followers), greedy), -1)


@torch.no_grad()
def token_details(model: PreTrainedModel, documents: Documents, batch: int) -> list[NDArray[np.float32]]:
    """Return the columns of each token but the first, (length - 1, 3), for each document in the order given.

    Args:
        model: model in evaluation mode.
        documents: token ids.
        batch: documents of one batch, if fewer than SCORED_TOGETHER.
    """
    order = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    positions = LOGIT_BYTES // (4 * COPIES * vocabulary_of(model))
    found: dict[int, NDArray[np.float32]] = {}
    for together in fitting(order, documents, min(batch, SCORED_TOGETHER), positions):
        rows = pad([documents[i] for i in together], model.config.pad_token_id or 0).on(model.device)
        details = read_batch(model, rows, max(1, positions // len(together)), read_details)
        for i, own, mask in zip(together, details, rows.attention_mask[:, 1:].bool(), strict=True):
            found[i] = own[mask].cpu().numpy()
    return [found[i] for i in range(len(documents))]
