"""The unlearning losses as plain functions of log-probabilities (the papers' formulas, not the released code).

GA and GDR use mean token log-probabilities, NPO the log-probability of the whole sequence, and KLR the divergence
KL(reference || model) of normalized distributions. The released code uses raw logits in NPO and KLR.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

IGNORED = -100  # a target that is none: nothing follows it, or padding does


class TokenLogProbs(NamedTuple):
    """Log-probabilities of the tokens of a padded batch, each given what stands before it.

    Attributes:
        label: log-probability of the token that follows, float32 (batch, length - 1), 0 on padding.
        mask: mask with True on real tokens, (batch, length - 1).
    """

    label: Tensor
    mask: Tensor


def token_log_probs(logits: Tensor, input_ids: Tensor, attention_mask: Tensor) -> TokenLogProbs:
    """Return log p of the tokens that follow, normalized in float32; logits (batch, length, vocabulary).

    They are the labels picked from `distributions`, by the fused cross entropy, which takes fewer passes over memory.
    """
    mask = attention_mask[:, 1:].bool()
    followers = input_ids[:, 1:].masked_fill(~mask, IGNORED)
    targets = functional.pad(followers, (0, 1), value=IGNORED)  # logits are not cut, which copies
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return TokenLogProbs(-losses.view(targets.shape)[:, :-1], mask)


def distributions(logits: Tensor) -> Tensor:
    """Return the normalized log-probabilities of whole distributions, float32 (batch, length - 1, vocabulary)."""
    return logits[:, :-1].float().log_softmax(-1)


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


def retain_divergence(model: Tensor, mask: Tensor, reference: Tensor) -> Tensor:
    """KLR: KL(reference || model), mean over the real tokens; >= 0 and 0 at the reference.

    Args:
        model: `distributions` of the batch under the model.
        mask: mask with True on real tokens, (batch, length - 1).
        reference: `distributions` under the reference.
    """
    divergence = (reference.exp() * (reference - model)).sum(-1)
    return divergence.masked_fill(~mask, 0.0).sum() / mask.sum()
