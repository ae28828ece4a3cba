"""Which states of a descent are kept: those where the forget loss first reaches a wanted depth, and those after some steps.

The loop asks at each step whether the loss is to be checked, tells what it is, and hands out weights when they are asked for:

    waypoints = Waypoints(goals, "nearest", check_every=10, weights=worker.weights)
    waypoints.see(0, loss)
    ...
    if waypoints.due(step):
        waypoints.see(step, loss)

A goal of loss lies between two checks, one below it and the first at or above it. "nearest" keeps whichever is nearer in loss, and
checks so often that they are neighbouring steps: the next check comes at half the number of steps in which the steepest rise so
far would lead to the goal. A loss that rises more than twice as steeply as ever before is found later; `Reached.within` says how
many steps lay between. The target itself is
never kept. "last" keeps the later one, of checks every `check_every` steps, as the fixed rule of a run without goals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from unforgotten.experiments.methods.states import Goal, Missed, Reached
from unforgotten.records.depths import END

if TYPE_CHECKING:
    from torch import Tensor

Keep = Literal["nearest", "last"]
Weights = Callable[[], Mapping[str, "Tensor"]]


@dataclass(frozen=True)
class _Check:
    step: int
    loss: float
    weights: Mapping[str, Tensor] | None


class Waypoints:
    """Keeps the states of one descent.

    Args:
        goals: goals, each of a depth of its own.
        keep: which of the two checks around a loss is kept.
        check_every: largest number of steps between two checks.
        weights: function that copies the weights of the moment.
    """

    def __init__(self, goals: Sequence[Goal], keep: Keep, check_every: int, weights: Weights) -> None:
        self._losses = sorted((g for g in goals if g.loss is not None), key=lambda g: g.loss or 0.0)
        self._steps = {g.steps: g for g in goals if g.steps is not None}
        self._order = [g.depth for g in goals]
        self._nearest = keep == "nearest"
        self._check_every, self._weights = check_every, weights
        self._last: _Check | None = None
        self._next = 0
        self._steepest = 0.0
        self._reached: dict[str, Reached] = {}
        self._missed: dict[str, Missed] = {}

    @property
    def done(self) -> bool:
        """Whether there were goals, and none is left."""
        return bool(self._order) and not self._losses and not self._steps

    def due(self, step: int) -> bool:
        """Tell whether the loss is to be checked after this step."""
        return step in self._steps or step >= self._next

    def see(self, step: int, loss: float) -> None:
        """Take the loss after a step, 0 for the start; keep what it decides."""
        before, weights = self._last, None
        if before is None:
            self._skip_what_is_there(loss)
        else:
            crossed = [g for g in self._losses if g.loss is not None and loss >= g.loss]
            if self._nearest or crossed or step in self._steps:
                weights = self._weights()
            now = _Check(step, loss, weights)
            for goal in crossed:
                self._keep(goal, before, now)
            self._losses = [g for g in self._losses if g not in crossed]
            if (at := self._steps.pop(step, None)) is not None:
                self._reached[at.depth] = Reached(at.depth, step, loss, "steps", weights or {})
            self._steepest = max(self._steepest, (loss - before.loss) / (step - before.step))
        self._last = _Check(step, loss, weights)
        self._next = self._after(step, loss)

    def end(self, stopped: str) -> tuple[tuple[Reached, ...], tuple[Missed, ...]]:
        """Return what was kept and what was missed, in the order of the goals; the last state where nothing was kept.

        Args:
            stopped: why the descent ended.
        """
        missed = [
            self._missed.get(depth, Missed(depth, stopped)) for depth in self._order if depth not in self._reached
        ]
        reached = [self._reached[depth] for depth in self._order if depth in self._reached]
        if self._order and not reached and self._last is not None:
            reached = [Reached(END, self._last.step, self._last.loss, stopped, self._weights())]
        return tuple(reached), tuple(missed)

    def _skip_what_is_there(self, loss: float) -> None:
        """Give up the goals that the target meets without a step.

        Raises:
            ValueError: there are goals, and all of them are such.
        """
        met = [g for g in self._losses if g.loss is not None and loss >= g.loss]
        self._missed = {g.depth: Missed(g.depth, "start") for g in met}
        self._losses = [g for g in self._losses if g not in met]
        if met and self.done:
            depths = ", ".join(g.depth for g in met)
            raise ValueError(f"unlearning.depths must be above the target's forget loss {loss:.3g}, got {depths}")

    def _keep(self, goal: Goal, before: _Check, now: _Check) -> None:
        wanted = now.loss if goal.loss is None else goal.loss
        nearer = self._nearest and before.weights is not None and wanted - before.loss < now.loss - wanted
        chosen = before if nearer else now
        self._reached[goal.depth] = Reached(
            goal.depth, chosen.step, chosen.loss, "forget_loss", chosen.weights or {}, now.step - before.step
        )

    def _after(self, step: int, loss: float) -> int:
        """Return the step of the next check."""
        regular = (step // self._check_every + 1) * self._check_every
        if not self._nearest or not self._losses:
            return regular
        if step == 0:
            return 1
        rise = 2 * self._steepest
        room = min((g.loss or 0.0) - loss for g in self._losses)
        ahead = step if rise <= 0 or math.isnan(room) else max(1, int(room / rise))
        return min(regular, step + ahead)
