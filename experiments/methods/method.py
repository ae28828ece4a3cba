"""What an unlearning method is, and what it is given.

A method is a file of this folder with a module-level `METHODS`; `registry.py` finds it there, a profile sets it by its name
under `unlearning.methods`, and a run hands it a copy of the target and a `Task`. One made of losses needs its term alone, see
`terms.py`; any other has a class of its own with the fields of `Method`.

`unforgotten methods` lists them where torch is missing, so a file of this folder imports what is heavy inside of its
functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from unforgotten.experiments.compute.settings import DEFAULT, ComputeConfig
from unforgotten.experiments.methods.states import Goal, Missed, Reached

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unforgotten.experiments.arms.arithmetic import Arithmetic
    from unforgotten.experiments.config import Storage, UnlearningConfig
    from unforgotten.experiments.methods.reference import Reference
    from unforgotten.experiments.models.batches import Documents
    from unforgotten.experiments.models.training import Progress


def nothing(model: PreTrainedModel, lr: float) -> None:
    """Do nothing before a step."""


@dataclass(frozen=True)
class Task:
    """What a method is given beside the model.

    Attributes:
        forget: token ids of the documents to forget.
        retain: token ids of the documents to keep.
        watched: documents of the stopping rule.
        common: settings of all methods of the run.
        storage: arm in which the model is kept from step to step.
        arithmetic: arithmetic of that arm.
        reference: function that gives log-probabilities of the target, from a model that still has its weights.
        seed: seed of the order of documents, and of the random bits of stochastic rounding.
        progress: function that is told of each step.
        paired: whether each document to forget comes with one document to keep in every epoch, as in MUSE.
        tokenizer: tokenizer of the model; None where there is none, and then no method may ask for it.
        before_step: function that is given the model with its clipped gradients, and the learning rate, before each step
            of AdamW.
        compute: settings of memory, which change results by rounding alone.
        goals: depths at which weights are kept on the way; the descent ends when none is left. None: the rule of the run ends it.
    """

    forget: Documents
    retain: Documents
    watched: Documents
    common: UnlearningConfig
    storage: Storage
    arithmetic: Arithmetic
    reference: Callable[[PreTrainedModel], Reference]
    seed: int
    progress: Progress
    paired: bool = False
    tokenizer: Any = None
    before_step: Callable[[PreTrainedModel, float], None] = nothing
    compute: ComputeConfig = DEFAULT
    goals: tuple[Goal, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a method ended.

    Attributes:
        steps: steps that it took.
        stopped: reason: the rule of the run ("forget_loss"), its goals ("goals"), or the limit ("max_steps").
        forget_loss: mean loss of the watched documents at the end.
        settings: settings that it ran with; "lr", "alpha", "beta", "updated_share" and "mask_threshold" go to the rows. "optimizer" is None where a weight may
            move otherwise than by the steps of an optimizer; absent, the steps are AdamW's.
        reached: weights that were kept for the goals of the task; the last ones where no goal was reached.
        missed: goals that were not reached.
    """

    steps: int
    stopped: str
    forget_loss: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    reached: tuple[Reached, ...] = ()
    missed: tuple[Missed, ...] = ()


def not_plain(outcome: Outcome) -> Outcome:
    """Return the outcome of a method whose weights do not move by the steps of an optimizer alone."""
    return replace(outcome, settings={**outcome.settings, "optimizer": None})


class Method(Protocol):
    """One way to unlearn."""

    @property
    def name(self) -> str:
        """Name in profiles and rows."""
        ...

    @property
    def statement(self) -> str:
        """What it does, in a few words."""
        ...

    @property
    def source(self) -> str:
        """Where it is from."""
        ...

    @property
    def settings(self) -> type[Any]:
        """Type of what a profile may set for it: a `Section`, or a dataclass."""
        ...

    def unlearn(self, model: PreTrainedModel, task: Task, settings: Any) -> Outcome:
        """Unlearn in place, starting from the target's weights.

        Args:
            model: copy of the target, float32.
            task: documents, and how to compute.
            settings: settings of the profile, of the type `settings`.
        """
        ...


def keeps_states(method: Method) -> bool:
    """Tell whether a method keeps weights on its way, where the task has goals: it says so by an attribute of this name."""
    return bool(getattr(method, "keeps_states", False))
