"""UNDIAL: the target taught to itself, with the logit of each token of the forget text lowered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unforgotten.experiments.methods.retain import RETAIN_TERMS
from unforgotten.experiments.methods.terms import ForgetTerm, by_loss

if TYPE_CHECKING:
    from torch import Tensor

    from unforgotten.experiments.methods.literature.settings import UndialConfig
    from unforgotten.experiments.methods.settings import Settings
    from unforgotten.experiments.methods.view import View


def adjusted_distillation(model: Tensor, target: Tensor, tokens: Tensor, mask: Tensor, strength: float) -> Tensor:
    """Return the loss of UNDIAL: the cross entropy of the model to softmax(z_target - strength e_y), mean over the tokens y.

    Args:
        model: logits of the model before each token, (batch, length, vocabulary).
        target: logits of the target before each token; a constant.
        tokens: the token y that follows each position, (batch, length).
        mask: True where there is one, (batch, length).
        strength: amount by which the logit of y is lowered, >= 0; 0 distills the target as it is.
    """
    lowered = target.float().scatter_add(-1, tokens[..., None], target.new_full((*tokens.shape, 1), -strength).float())
    entropy = -(lowered.softmax(-1) * model.float().log_softmax(-1)).sum(-1)
    return entropy.masked_fill(~mask, 0.0).sum() / mask.sum()


def _loss(view: View, settings: Settings) -> Tensor:
    tokens = view.batch.input_ids[:, 1:]
    strength = settings.own["strength"]
    return adjusted_distillation(view.logits[:, :-1], view.target_logits[:, :-1], tokens, view.mask, strength)


def _config() -> type[UndialConfig]:
    from unforgotten.experiments.methods.literature.settings import UndialConfig

    return UndialConfig


UNDIAL = ForgetTerm(
    name="UNDIAL",
    statement="the target distilled into itself, the logits of the forget text's tokens lowered",
    beside="UNDIAL",
    loss=_loss,
    source="Dong et al. 2024, arXiv 2402.10052",
    settings=_config,
    mean="followers",
)
METHODS = tuple(by_loss(UNDIAL, retain) for retain in RETAIN_TERMS)
