"""A pair of terms under another kind of step, with settings of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from unforgotten.experiments.methods.method import not_plain
from unforgotten.experiments.methods.terms import LossMethod

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unforgotten.experiments.methods.method import Outcome, Task
    from unforgotten.experiments.methods.settings import MethodConfig
    from unforgotten.experiments.methods.steps import Step


@dataclass(frozen=True)
class WrappedMethod:
    """A pair of terms under another kind of step. A `Method`.

    Attributes:
        base: pair of terms.
        suffix: last part of the name.
        how: what the step does, after the statement of the pair.
        paper: source of the step, before that of the pair.
        config: function that gives the type of the settings.
        step: function that makes the step of a run from its settings, and from the task.
    """

    base: LossMethod
    suffix: str
    how: str
    paper: str
    config: Callable[[], type[MethodConfig]]
    step: Callable[[Any, Task], Step]
    keeps_states: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Name of the pair, and of the step."""
        return f"{self.base.name}_{self.suffix}"

    @property
    def statement(self) -> str:
        """What it does."""
        return f"{self.base.statement}; {self.how}"

    @property
    def source(self) -> str:
        """Where the step and the terms are from."""
        return f"{self.paper}; {self.base.source}"

    @property
    def settings(self) -> type[MethodConfig]:
        """Type of what a profile may set for it."""
        return self.config()

    def unlearn(self, model: PreTrainedModel, task: Task, settings: MethodConfig) -> Outcome:
        """Descend the losses of the pair by such steps."""
        return not_plain(self.base.descend(model, task, settings, self.step(settings, task)))
