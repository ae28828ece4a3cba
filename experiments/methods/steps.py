"""One step of the unlearning loop: how it gets its gradients, and what follows the optimizer.

`descent.py` makes the batches and takes the step; a `Step` says which losses are passed back, and may change the gradients before
they are clipped and the weights after the optimizer has moved them. `PlainStep` is that of GA and NPO:

    descend(model, forget, retain, settings, task, PlainStep())
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Losses:
    """The losses of one step's batches; every call passes the model anew.

    Attributes:
        forget: forget loss.
        retain: retain loss times `alpha`; None where there is no retain term.
        both: forget loss, and its sum with `retain`, of one computation.
        backward: function that adds the gradients of a loss to those of the parameters.
        descend: function that adds the gradients of the sum, one part of the batches after the other; None for all in one pass.
    """

    forget: Callable[[], Tensor]
    retain: Callable[[], Tensor] | None
    both: Callable[[], tuple[Tensor, Tensor]]
    backward: Callable[[Tensor], None]
    descend: Callable[[], None] | None = None


ForgetGradients = Callable[[], Mapping[str, Tensor]]
"""Gives the gradient of the forget loss over the whole forget set at the weights of the moment, float32, by parameter."""


class Step(Protocol):
    """What a method does in a step; one object goes through one run of the loop."""

    def begin(self, model: PreTrainedModel, forget_gradients: ForgetGradients) -> None:
        """Prepare, at the target's weights in the arm's dtype."""
        ...

    def gradients(self, model: PreTrainedModel, losses: Losses) -> None:
        """Leave in the parameters the gradients that are then clipped."""
        ...

    def end(self, model: PreTrainedModel) -> None:
        """Change the weights after the optimizer has moved them."""
        ...


class PlainStep:
    """Passes back the sum of both losses, and changes nothing."""

    def begin(self, model: PreTrainedModel, forget_gradients: ForgetGradients) -> None:
        """Prepare nothing."""

    def gradients(self, model: PreTrainedModel, losses: Losses) -> None:
        """Pass back the sum."""
        if losses.descend is None:
            losses.backward(losses.both()[1])
        else:
            losses.descend()

    def end(self, model: PreTrainedModel) -> None:
        """Change nothing."""
