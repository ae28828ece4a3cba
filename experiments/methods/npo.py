"""NPO: negative preference optimization of the forget text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unforgotten.experiments.methods.retain import RETAIN_TERMS
from unforgotten.experiments.methods.terms import ForgetTerm, by_loss

if TYPE_CHECKING:
    from torch import Tensor

    from unforgotten.experiments.methods.settings import Settings
    from unforgotten.experiments.methods.view import View
    from unforgotten.experiments.models.log_probs import TokenLogProbs


def negative_preference(forget: TokenLogProbs, reference: Tensor, beta: float) -> Tensor:
    """Return the loss of NPO: -(2 / beta) E log sigmoid(-beta [log p_theta(y) - log p_ref(y)]).

    Args:
        forget: log-probabilities of the batch under the model.
        reference: log p_ref(y) of each sequence, (batch,).
        beta: inverse temperature, > 0; beta -> 0 is GA.
    """
    from torch.nn import functional

    from unforgotten.experiments.models.log_probs import sequence_log_probs

    ratio = sequence_log_probs(forget) - reference
    return -(2.0 / beta) * functional.logsigmoid(-beta * ratio).mean()


def _loss(view: View, settings: Settings) -> Tensor:
    return negative_preference(view.scored, view.target_sequences, settings.beta)


NPO = ForgetTerm(
    name="NPO",
    statement="negative preference optimization of the forget text",
    beside="NPO",
    loss=_loss,
    source="Zhang et al. 2024, arXiv 2404.05868",
    mean="documents",
)
METHODS = tuple(by_loss(NPO, retain) for retain in RETAIN_TERMS)
