"""What is kept of an unlearning run on its way: goals, and the weights at those that were reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Goal:
    """A depth at which weights are kept; `loss` or `steps` says where it is.

    Attributes:
        depth: name of it, see `records/depths.py`.
        loss: mean loss of the watched documents, nats per token, that is to be reached; None for a number of steps.
        steps: number of steps; None for a loss.
    """

    depth: str
    loss: float | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Reached:
    """Weights that were kept for a goal.

    Attributes:
        depth: name of the goal.
        steps: steps after which the weights were these.
        forget_loss: mean loss of the watched documents of these weights.
        stopped: reason for keeping them: "forget_loss", "steps", or "max_steps" for the last state where no goal was reached.
        weights: copies of the parameters by name, on the CPU, in the dtype of the arm.
        within: steps between the two checks around the goal; None where there is one check alone.
    """

    depth: str
    steps: int
    forget_loss: float
    stopped: str
    weights: Mapping[str, Tensor]
    within: int | None = None


@dataclass(frozen=True)
class Missed:
    """A goal of which nothing is kept.

    Attributes:
        depth: name of the goal.
        stopped: reason: "max_steps", or "start" for a loss that the target has without any step.
    """

    depth: str
    stopped: str
