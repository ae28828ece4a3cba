"""GA: gradient ascent on the forget text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unforgotten.experiments.methods.retain import RETAIN_TERMS
from unforgotten.experiments.methods.terms import ForgetTerm, by_loss

if TYPE_CHECKING:
    from torch import Tensor

    from unforgotten.experiments.methods.settings import Settings
    from unforgotten.experiments.methods.view import View
    from unforgotten.experiments.models.log_probs import TokenLogProbs


def gradient_ascent(forget: TokenLogProbs) -> Tensor:
    """Return the loss of GA: minus the cross entropy. Unbounded below."""
    from unforgotten.experiments.models.log_probs import cross_entropy

    return -cross_entropy(forget)


def _loss(view: View, settings: Settings) -> Tensor:
    return gradient_ascent(view.scored)


GA = ForgetTerm(
    name="GA",
    statement="gradient ascent on the forget text",
    beside="gradient ascent",
    loss=_loss,
    source="Jang et al. 2023, arXiv 2210.01504; as in MUSE, Shi et al. 2024, arXiv 2407.06460; with GDR, GradDiff elsewhere",
    mean="followers",
)
METHODS = tuple(by_loss(GA, retain) for retain in RETAIN_TERMS)
