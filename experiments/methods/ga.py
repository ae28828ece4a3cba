"""GA: gradient ascent on the forget text."""

from __future__ import annotations

from torch import Tensor

from unforgotten.experiments.models.log_probs import TokenLogProbs, cross_entropy


def gradient_ascent(forget: TokenLogProbs) -> Tensor:
    """GA: minus the cross entropy. Unbounded below."""
    return -cross_entropy(forget)
