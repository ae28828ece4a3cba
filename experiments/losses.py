"""The unlearning losses as plain functions of log-probabilities (paper/spec: the formulas, not the released code).

GA and GDR use mean token log-probabilities, NPO the log-probability of the whole sequence, and KLR the divergence
KL(reference || model) of normalized distributions. The released code uses raw logits in NPO and KLR.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class TokenLogProbs(NamedTuple):
    """Next-token log-probabilities of a padded batch.

    Attributes:
        distribution: float32 (batch, length - 1, vocabulary), normalized.
        label: log-probability of the token that follows, (batch, length - 1), 0 on padding.
        mask: True on real tokens, (batch, length - 1).
    """

    distribution: Tensor
    label: Tensor
    mask: Tensor


def token_log_probs(logits: Tensor, input_ids: Tensor, attention_mask: Tensor) -> TokenLogProbs:
    """Normalize in float32 and pick the labels; logits (batch, length, vocabulary)."""
    distribution = logits[:, :-1].float().log_softmax(-1)
    mask = attention_mask[:, 1:].bool()
    label = distribution.gather(-1, input_ids[:, 1:, None])[..., 0].masked_fill(~mask, 0.0)
    return TokenLogProbs(distribution, label, mask)


def cross_entropy(batch: TokenLogProbs) -> Tensor:
    """Mean negative log-probability over the real tokens of the batch."""
    return -batch.label.sum() / batch.mask.sum()


def gradient_ascent(forget: TokenLogProbs) -> Tensor:
    """GA: minus the cross entropy. Unbounded below."""
    return -cross_entropy(forget)


def sequence_log_probs(batch: TokenLogProbs) -> Tensor:
    """Log p(y) of each sequence, (batch,)."""
    return batch.label.sum(-1)


def negative_preference(forget: TokenLogProbs, reference: Tensor, beta: float) -> Tensor:
    """NPO: -(2 / beta) E log sigmoid(-beta [log p_theta(y) - log p_ref(y)]), arXiv 2404.05868.

    Args:
        forget: the batch under the model.
        reference: log p_ref(y) of each sequence, (batch,).
        beta: inverse temperature, > 0; beta -> 0 is GA.
    """
    ratio = sequence_log_probs(forget) - reference
    return -(2.0 / beta) * functional.logsigmoid(-beta * ratio).mean()


def retain_divergence(retain: TokenLogProbs, reference: Tensor) -> Tensor:
    """KLR: KL(reference || model), mean over the real tokens; >= 0 and 0 at the reference.

    Args:
        retain: the batch under the model.
        reference: normalized log-probabilities of the reference, shape of `retain.distribution`.
    """
    divergence = (reference.exp() * (reference - retain.distribution)).sum(-1)
    return divergence.masked_fill(~retain.mask, 0.0).sum() / retain.mask.sum()


def detached(batch: TokenLogProbs) -> TokenLogProbs:
    """The same numbers without their graph."""
    return TokenLogProbs(*(torch.Tensor.detach(part) for part in batch))
