"""A method of one's own: a function or a `Method`, in a file or a module, under its reference in place of a name.

    unforgotten run tiny --method examples/own_method.py:less_likely

`unlearning.methods` of a profile takes the same references. A function is called with the model, the `Task` and the `Settings` of
the arm, and returns an `Outcome`; its model comes in the arm's dtype, and leaves in it. What the outcome says of lr, alpha and beta
goes to the rows, and nothing that it does not say. Rows, reports and folders call the method by the part after the colon.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from unforgotten.experiments.methods.method import Method, Outcome

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unforgotten.experiments.methods.method import Task
    from unforgotten.experiments.methods.settings import MethodConfig

FORM = "a file of Python and a name in it, path.py:name, or module:name"
PARTS = ("name", "statement", "source", "settings", "unlearn")
ARGUMENTS = ("model", "task", "settings")


def is_own(name: str) -> bool:
    """Tell a reference from the name of a method of this package."""
    return ":" in name


def label_of(name: str) -> str:
    """Return what rows, reports and folders call a method: its name, or the part of its reference after the colon."""
    return name.rpartition(":")[2]


@cache
def load_own(reference: str) -> Method:
    """Return the method that a reference stands for.

    Raises:
        ValueError: it has another form, its file or module is missing or fails to load, it holds no such name, or what the name
            stands for is neither a `Method` nor a function of three arguments.
    """
    place, _, name = reference.rpartition(":")
    if not place or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise ValueError(f"method must be {FORM}, got method={reference!r}")
    module = _module(place)
    if not hasattr(module, name):
        raise ValueError(f"{place}: must hold the method, got no name {name!r}")
    found: Any = getattr(module, name)
    if all(hasattr(found, part) for part in PARTS) and not isinstance(found, type):
        _check_arguments(reference, found.unlearn)
        method: Method = found
        return method
    if not callable(found) or isinstance(found, type):
        raise ValueError(f"{reference}: must be a function or a Method, got {type(found).__name__}")
    function: Callable[..., Any] = found
    _check_arguments(reference, function)
    return FunctionMethod(name, function, reference)


def _module(place: str) -> ModuleType:
    """Load a file, or import a module, from the working directory too."""
    file = place.endswith(".py")
    if file and not Path(place).is_file():
        raise ValueError(f"{place}: must be a file of Python, got no such file")
    try:
        return _load_file(Path(place)) if file else _import(place)
    except ModuleNotFoundError as error:
        if not file and error.name is not None and f"{place}.".startswith(f"{error.name}."):
            raise ValueError(f"{place}: must be a module that can be imported, got none of that name") from None
        raise ValueError(f"{place}: must load, got {_described(error)}") from error
    except Exception as error:
        raise ValueError(f"{place}: must load, got {_described(error)}") from error


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"unforgotten_own_{_digest(path)[:12]}", path)
    assert spec is not None  # the path ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses of the file look themselves up there
    spec.loader.exec_module(module)
    return module


def _import(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    return importlib.import_module(name)


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _check_arguments(reference: str, function: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # written in C: found out when it is called
    try:
        signature.bind(*ARGUMENTS)
    except TypeError:
        raise ValueError(f"{reference}: must take ({', '.join(ARGUMENTS)}), got {signature}") from None


def digests(names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of the file of each reference among the names; one that is in no file has none."""
    places = {name: name.rpartition(":")[0] for name in names if is_own(name)}
    files = {n: p if p.endswith(".py") else getattr(_module(p), "__file__", None) for n, p in places.items()}
    return {name: _digest(Path(file)) for name, file in files.items() if file is not None}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
        return (inspect.getdoc(self.function) or "a method without a docstring").splitlines()[0]

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
