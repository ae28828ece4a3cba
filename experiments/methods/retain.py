"""The terms that keep what is to be retained."""

from __future__ import annotations

from torch import Tensor


def retain_divergence(model: Tensor, mask: Tensor, reference: Tensor) -> Tensor:
    """KLR: KL(reference || model), mean over the real tokens; >= 0 and 0 at the reference.

    Args:
        model: `distributions` of the batch under the model.
        mask: True on real tokens, (batch, length - 1).
        reference: `distributions` under the reference.
    """
    divergence = (reference.exp() * (reference - model)).sum(-1)
    return divergence.masked_fill(~mask, 0.0).sum() / mask.sum()
