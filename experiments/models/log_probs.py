"""Log-probabilities of tokens, sequences and whole distributions, as plain functions of logits.

They are the normalized ones of the paper's formulas; the released code of MUSE uses raw logits in NPO and KLR.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

IGNORED = -100  # a target that is none: nothing follows it, or padding does


class TokenLogProbs(NamedTuple):
    """Log-probabilities of the tokens of a padded batch, each given what stands before it.

    Attributes:
        label: log-probability of the token that follows, float32 (batch, length - 1), 0 on padding and on what does not count.
        mask: mask with True on real tokens that count, (batch, length - 1).
    """

    label: Tensor
    mask: Tensor


def token_log_probs(logits: Tensor, input_ids: Tensor, scored: Tensor) -> TokenLogProbs:
    """Return log p of the tokens that follow, normalized in float32; logits (batch, length, vocabulary).

    `scored` is 1 on the tokens that count, (batch, length). They are the labels picked from `distributions`, by the fused cross entropy, which takes fewer passes over memory.
    """
    mask = scored[:, 1:].bool()
    followers, real = (functional.pad(x, (0, 1)) for x in (input_ids[:, 1:], mask))  # logits are not cut, which copies
    return TokenLogProbs(follower_log_probs(logits, followers, real)[:, :-1], mask)


def follower_log_probs(logits: Tensor, followers: Tensor, mask: Tensor) -> Tensor:
    """Return log p of the tokens that follow, normalized in float32, 0 where the mask is False.

    Args:
        logits: logits of each position, (batch, length, vocabulary).
        followers: tokens after each position, (batch, length).
        mask: True where the follower is a real token, (batch, length).
    """
    targets = followers.masked_fill(~mask, IGNORED)
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return -losses.view(targets.shape)


def distributions(logits: Tensor) -> Tensor:
    """Return the normalized log-probabilities of whole distributions, float32 (batch, length - 1, vocabulary)."""
    return logits[:, :-1].float().log_softmax(-1)


def cross_entropy(batch: TokenLogProbs) -> Tensor:
    """Return the mean negative log-probability over the real tokens of the batch."""
    return -batch.label.sum() / batch.mask.sum()


def sequence_log_probs(batch: TokenLogProbs) -> Tensor:
    """Log p(y) of each sequence, (batch,)."""
    return batch.label.sum(-1)
