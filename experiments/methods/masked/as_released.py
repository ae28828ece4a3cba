"""What the code of arXiv 2410.16454 computes under the name SURE: no mask, and the gradient of the forget loss twice.

Kept to reproduce its tables; `sure.py` is the method. Its class computes a mask by row in every step, in a function of the trainer
that the trainer never calls, so every weight moves; and it passes the forget loss back for the mask without clearing what that
leaves, so the step goes along 2 grad L_forget + alpha grad L_retain. Its NPO is that of raw logits, and its KLR is summed over the
tokens of a document, not averaged. Padding, which the released code counts, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unforgotten.experiments.methods.ga import GA
from unforgotten.experiments.methods.raw_logits import NPO_RAW
from unforgotten.experiments.methods.retain import GDR
from unforgotten.experiments.methods.terms import ForgetTerm, LossMethod, RetainTerm, by_loss

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from unforgotten.experiments.methods.method import Outcome, Task
    from unforgotten.experiments.methods.settings import MethodConfig, Settings
    from unforgotten.experiments.methods.steps import ForgetGradients, Losses
    from unforgotten.experiments.methods.view import View

RELEASED = "class SURE of github.com/zzwjames/FailureLLMUnlearning at 10131ae; not the published method"


def summed_divergence(model: Tensor, real: Tensor, reference: Tensor) -> Tensor:
    """Return KL(reference || model) summed over the real tokens, divided by the number of documents; >= 0.

    Args:
        model: logits of the model, (batch, length, vocabulary).
        real: True on real tokens, (batch, length).
        reference: logits of the target.
    """
    model, reference = (z.float().log_softmax(-1) for z in (model, reference))
    divergence = (reference.exp() * (reference - model)).sum(-1)
    return divergence.masked_fill(~real, 0.0).sum() / len(model)


def _loss(view: View, settings: Settings) -> Tensor:
    return summed_divergence(view.logits, view.real, view.target_logits)


class DoubledStep:
    """Passes the forget loss back, then the sum: 2 grad L_forget + alpha grad L_retain. Masks nothing."""

    def begin(self, model: PreTrainedModel, forget_gradients: ForgetGradients) -> None:
        """Prepare nothing."""

    def gradients(self, model: PreTrainedModel, losses: Losses) -> None:
        """Pass back the forget loss and the sum."""
        forget, total = losses.both()
        forget.backward(retain_graph=True)
        losses.backward(total)

    def end(self, model: PreTrainedModel) -> None:
        """Change nothing."""


@dataclass(frozen=True)
class AsReleased:
    """A pair of terms, descended as the released class does. A `Method`."""

    base: LossMethod
    keeps_states: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Name of the pair as released, and that this is the released code."""
        return f"{self.base.name}_SURE_as_released"

    @property
    def statement(self) -> str:
        """What it does."""
        return f"{self.base.statement}; no mask and twice the forget gradient, as released under the name SURE"

    @property
    def source(self) -> str:
        """Where it is from."""
        return RELEASED

    @property
    def settings(self) -> type[MethodConfig]:
        """Type of what a profile may set for it."""
        return self.base.settings

    def unlearn(self, model: PreTrainedModel, task: Task, settings: MethodConfig) -> Outcome:
        """Descend the losses of the pair, the forget loss counted twice."""
        return self.base.descend(model, task, settings, DoubledStep())


NPO_RELEASED = ForgetTerm("NPO", NPO_RAW.statement, NPO_RAW.beside, NPO_RAW.loss, RELEASED, mean="tokens")
KLR_RELEASED = RetainTerm("KLR", "KL(target || model) summed over each retain document", _loss, RELEASED, "documents")
METHODS = tuple(
    AsReleased(by_loss(forget, retain)) for forget in (GA, NPO_RELEASED) for retain in (None, GDR, KLR_RELEASED)
)
