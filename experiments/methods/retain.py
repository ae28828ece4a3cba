"""The terms that keep what is to be retained: GDR and KLR, as in MUSE (Shi et al. 2024, arXiv 2407.06460)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unforgotten.experiments.methods.terms import RetainTerm

if TYPE_CHECKING:
    from torch import Tensor

    from unforgotten.experiments.methods.settings import Settings
    from unforgotten.experiments.methods.view import View


def retain_divergence(model: Tensor, mask: Tensor, reference: Tensor) -> Tensor:
    """Return the loss of KLR: KL(reference || model), mean over the real tokens; >= 0 and 0 at the reference.

    Args:
        model: `distributions` of the batch under the model.
        mask: True on real tokens, (batch, length - 1).
        reference: `distributions` under the reference.
    """
    divergence = (reference.exp() * (reference - model)).sum(-1)
    return divergence.masked_fill(~mask, 0.0).sum() / mask.sum()


def _descent_loss(view: View, settings: Settings) -> Tensor:
    from unforgotten.experiments.models.log_probs import cross_entropy

    return cross_entropy(view.scored)


def _divergence_loss(view: View, settings: Settings) -> Tensor:
    return retain_divergence(view.distributions, view.mask, view.target_distributions)


GDR = RetainTerm("GDR", "cross entropy on the retain text", _descent_loss, mean="followers")
KLR = RetainTerm("KLR", "KL(target || model) on the retain text", _divergence_loss, mean="followers")
RETAIN_TERMS = (None, GDR, KLR)
