"""A method of one's own: a function or a `Method`, in a file or a module, under its reference in place of a name.

    unforgotten run tiny --method examples/own_method.py:less_likely

`unlearning.methods` of a profile takes the same references. A function is called with the model, the `Task` and the `Settings` of
the arm, and returns an `Outcome`; its model comes in the arm's dtype, and leaves in it. What the outcome says of lr, alpha and beta
goes to the rows, and nothing that it does not say. Rows, reports and folders call the method by the part after the colon.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from unforgotten.experiments.methods.method import Method, Outcome
from unforgotten.experiments.own import load_whole, said_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unforgotten.experiments.methods.method import Task
    from unforgotten.experiments.methods.settings import MethodConfig

PARTS = ("name", "statement", "source", "settings", "unlearn")
ARGUMENTS = ("model", "task", "settings")


@cache
def load_own(reference: str) -> Method:
    """Return the method that a reference stands for.

    Raises:
        ValueError: it cannot be loaded, see `load_object`, or is neither a `Method` nor a function of three arguments.
    """
    method: Method = load_whole(reference, "method", "Method", PARTS, ARGUMENTS, FunctionMethod)
    return method


@dataclass(frozen=True)
class FunctionMethod:
    """A method that is a function of one's own. A `Method`.

    Attributes:
        name: name of the function.
        function: function of the model, the task and the settings, that unlearns in place.
        reference: place that it was loaded from.
    """

    name: str
    function: Callable[[PreTrainedModel, Task, Any], Outcome]
    reference: str

    @property
    def statement(self) -> str:
        """First line of its docstring."""
        return said_of(self.function, "method")

    @property
    def source(self) -> str:
        """Where it was loaded from."""
        return self.reference

    @property
    def settings(self) -> type[MethodConfig]:
        """Type of what a profile may set for it."""
        from unforgotten.experiments.methods.settings import MethodConfig

        return MethodConfig

    def unlearn(self, model: PreTrainedModel, task: Task, settings: MethodConfig) -> Outcome:
        """Call the function on the model in the arm's dtype.

        Raises:
            ValueError: it returns no `Outcome`, or one without a number of steps and a loss; or it leaves a parameter in
                another dtype.
        """
        from unforgotten.experiments.methods.settings import settings_of

        task.arithmetic.cast(model)
        outcome = self.function(model, task, settings_of(task, settings))
        if not isinstance(outcome, Outcome):
            raise ValueError(f"{self.reference}: must return an Outcome, got {type(outcome).__name__}")
        if type(outcome.steps) is not int or outcome.steps < 0 or not math.isfinite(outcome.forget_loss):
            given = f"steps={outcome.steps!r}, forget_loss={outcome.forget_loss!r}"
            raise ValueError(
                f"{self.reference}: its Outcome must have whole steps >= 0 and a finite forget_loss, got {given}"
            )
        for name, parameter in model.named_parameters():
            if parameter.dtype != task.arithmetic.parameters:
                rule = f"must leave every parameter in {task.arithmetic.parameters}, as the arm {task.storage} keeps it"
                raise ValueError(f"{self.reference}: {rule}, got {name} in {parameter.dtype}")
        model.eval()
        return replace(outcome, settings={"optimizer": None, **outcome.settings})
