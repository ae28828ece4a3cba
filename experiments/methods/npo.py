"""NPO: negative preference optimization of the forget text."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from unforgotten.experiments.models.log_probs import TokenLogProbs, sequence_log_probs


def negative_preference(forget: TokenLogProbs, reference: Tensor, beta: float) -> Tensor:
    """NPO: -(2 / beta) E log sigmoid(-beta [log p_theta(y) - log p_ref(y)]), arXiv 2404.05868.

    Args:
        forget: the batch under the model.
        reference: log p_ref(y) of each sequence, (batch,).
        beta: inverse temperature, > 0; beta -> 0 is GA.
    """
    ratio = sequence_log_probs(forget) - reference
    return -(2.0 / beta) * functional.logsigmoid(-beta * ratio).mean()
