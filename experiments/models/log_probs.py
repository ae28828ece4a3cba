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
    """Return the mean negative log-probability over the real tokens of the batch."""
    return -batch.label.sum() / batch.mask.sum()


def sequence_log_probs(batch: TokenLogProbs) -> Tensor:
    """Log p(y) of each sequence, (batch,)."""
    return batch.label.sum(-1)
