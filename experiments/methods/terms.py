"""Methods made of losses: a forget term and a retain term under one loop, see `descent.py`.

    def _loss(view: View, settings: Settings) -> Tensor:
        return view.scored.label.sum(-1).sigmoid().mean()

    FL = ForgetTerm("FL", "forget less", "forget less", _loss, SOURCE)
    METHODS = tuple(by_loss(FL, retain) for retain in RETAIN_TERMS)

makes FL, FL_GDR and FL_KLR.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from unforgotten.experiments.compute.parts import Mean
    from unforgotten.experiments.methods.method import Outcome, Task
    from unforgotten.experiments.methods.settings import MethodConfig, Settings
    from unforgotten.experiments.methods.steps import Step
    from unforgotten.experiments.methods.view import View

Term = Callable[["View", "Settings"], "Tensor"]
"""A loss: of one batch, as the model and the target see it, and of what the method runs with."""


def _common() -> type[MethodConfig]:
    from unforgotten.experiments.methods.settings import MethodConfig

    return MethodConfig


@dataclass(frozen=True)
class ForgetTerm:
    """A loss on forget batches.

    Attributes:
        name: name of the method that has no retain term, and first part of the others' names.
        statement: description of the method that has it alone.
        beside: description before that of a retain term.
        loss: function that gives the loss.
        source: paper that it is from.
        settings: function that gives the type of what a profile may set for it; what the common settings lack stands in
            `Settings.own`.
        mean: what the loss is a mean over; None for a loss that only a whole batch has, which is then never computed in parts.
    """

    name: str
    statement: str
    beside: str
    loss: Term
    source: str
    settings: Callable[[], type[MethodConfig]] = _common
    mean: Mean | None = None


@dataclass(frozen=True)
class RetainTerm:
    """A loss on retain batches, `alpha` times of which is added.

    Attributes:
        name: last part of a method's name.
        statement: description.
        loss: function that gives the loss.
        source: where it is from, if not from MUSE.
        mean: what the loss is a mean over, as of a `ForgetTerm`.
    """

    name: str
    statement: str
    loss: Term
    source: str = ""
    mean: Mean | None = None


@dataclass(frozen=True)
class LossMethod:
    """loss = forget term + alpha * retain term, descended by AdamW. A `Method`."""

    forget: ForgetTerm
    retain: RetainTerm | None
    keeps_states: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The names of its terms."""
        return self.forget.name if self.retain is None else f"{self.forget.name}_{self.retain.name}"

    @property
    def statement(self) -> str:
        """What its terms do."""
        return self.forget.statement if self.retain is None else f"{self.forget.beside}, {self.retain.statement}"

    @property
    def source(self) -> str:
        """Where its terms are from."""
        own = "" if self.retain is None else self.retain.source
        return "; ".join(dict.fromkeys(s for s in (self.forget.source, own) if s))

    @property
    def settings(self) -> type[MethodConfig]:
        """Type of what a profile may set for it."""
        return self.forget.settings()

    def unlearn(self, model: PreTrainedModel, task: Task, settings: MethodConfig) -> Outcome:
        """Descend the loss, see `descent.py`."""
        return self.descend(model, task, settings)

    def descend(self, model: PreTrainedModel, task: Task, settings: MethodConfig, step: Step | None = None) -> Outcome:
        """Descend the loss with steps of another kind, see `steps.py`."""
        from unforgotten.experiments.methods.descent import descend
        from unforgotten.experiments.methods.settings import settings_of

        kept = None if self.retain is None else self.retain.loss
        means = (self.forget.mean, None if self.retain is None else self.retain.mean)
        return descend(model, self.forget.loss, kept, settings_of(task, settings), task, step, means)


def by_loss(forget: ForgetTerm, retain: RetainTerm | None) -> LossMethod:
    """Return the method of a forget term, and of a retain term or none."""
    return LossMethod(forget, retain)
