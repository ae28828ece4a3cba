"""SimNPO: NPO without a reference, on the mean log-probability of a document's tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unforgotten.experiments.methods.retain import RETAIN_TERMS
from unforgotten.experiments.methods.terms import ForgetTerm, by_loss

if TYPE_CHECKING:
    from torch import Tensor

    from unforgotten.experiments.methods.literature.settings import SimNPOConfig
    from unforgotten.experiments.methods.settings import Settings
    from unforgotten.experiments.methods.view import View
    from unforgotten.experiments.models.log_probs import TokenLogProbs


def simple_preference(forget: TokenLogProbs, beta: float, gamma: float) -> Tensor:
    """Return the loss of SimNPO: -(2 / beta) E log sigmoid(-(beta / |y|) log p(y) - gamma).

    Args:
        forget: log-probabilities of the batch under the model.
        beta: inverse temperature, > 0.
        gamma: margin, >= 0: a document counts as forgotten where its loss per token is above gamma / beta.
    """
    from torch.nn import functional

    mean = forget.label.sum(-1) / forget.mask.sum(-1)
    return -(2.0 / beta) * functional.logsigmoid(-beta * mean - gamma).mean()


def _loss(view: View, settings: Settings) -> Tensor:
    return simple_preference(view.scored, settings.beta, settings.own["gamma"])


def _config() -> type[SimNPOConfig]:
    from unforgotten.experiments.methods.literature.settings import SimNPOConfig

    return SimNPOConfig


SIMNPO = ForgetTerm(
    name="SimNPO",
    statement="NPO without a reference, on the mean log-probability of the forget text's tokens",
    beside="SimNPO",
    loss=_loss,
    source="Fan et al. 2024, arXiv 2410.07163, eq. 4",
    settings=_config,
    mean="documents",
)
METHODS = tuple(by_loss(SIMNPO, retain) for retain in RETAIN_TERMS)
