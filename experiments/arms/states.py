"""The states of an arm: the model that it ends with, or one for each depth at which weights are kept on the way.

Each state is a folder below `models/`. Where a run has such goals, `states/<arm>.json` says which were reached and which were not,
and why; it is written when the folders are there, so an arm is done where it stands. An arm that reached none of them has its last
state, of the depth "end", and nothing says that it is as deep as was wanted:

    [state.name for state in kept(config, arm, Path("runs/tiny-seed0"))]
    ["unlearned-NPO_GDR-bf16-depth0.6", "unlearned-NPO_GDR-bf16-retrained"]
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from unforgotten.experiments.arms.arm import Arm
from unforgotten.experiments.compute.device import device_of
from unforgotten.experiments.compute.processes import processes
from unforgotten.experiments.config import RunConfig
from unforgotten.experiments.methods.method import Outcome
from unforgotten.experiments.methods.states import Goal
from unforgotten.experiments.models.batches import Documents
from unforgotten.experiments.models.saved import load_model, save_model
from unforgotten.experiments.models.scoring import mean_loss
from unforgotten.records.depths import RETRAINED, of_loss, of_steps, stem
from unforgotten.records.files import write_json

STATES = "states"


@dataclass(frozen=True)
class ArmState:
    """A model that an arm leaves.

    Attributes:
        arm: arm.
        depth: depth at which its weights were kept, see `records/depths.py`; None for the end of an arm without goals.
    """

    arm: Arm
    depth: str | None = None

    @property
    def name(self) -> str:
        """Folder name below `models/`."""
        return self.arm.name + self._suffix("-")

    @property
    def title(self) -> str:
        """Name of the state in what progress says."""
        return self.arm.title + self._suffix(" ")

    def _suffix(self, before: str) -> str:
        return "" if self.depth is None else before + stem(self.depth)


def planned(config: RunConfig, arm: Arm) -> list[ArmState]:
    """Return the states that an arm is to leave, in order."""
    settings = config.unlearning
    depths = [*map(of_loss, settings.depths), *map(of_steps, settings.at_steps)]
    return [ArmState(arm, depth) for depth in depths] or [ArmState(arm)]


def goals(config: RunConfig, retrained_loss: Callable[[], float]) -> tuple[Goal, ...]:
    """Return what the arms of a run are to reach.

    Args:
        config: configuration of the run.
        retrained_loss: function that gives the mean loss of the forget passages under the retrained model.
    """
    settings = config.unlearning
    losses = [Goal(of_loss(d), loss=retrained_loss() if d == RETRAINED else float(d)) for d in settings.depths]
    return (*losses, *(Goal(of_steps(n), steps=n) for n in settings.at_steps))


def loss_of_retrained(config: RunConfig, models: Path, passages: Documents) -> float:
    """Return the mean loss of the forget passages under the retrained model, in float32; processes agree on it."""

    def found() -> float:
        model = load_model(models / "retrained")
        torch.nn.Module.to(model, device_of(config.compute))
        return mean_loss(model, passages, 4 * config.unlearning.batch)

    return processes().agreed(found)


def is_done(config: RunConfig, arm: Arm, folder: Path) -> bool:
    """Tell whether all that an arm leaves is in the folder of a run."""
    has_goals = planned(config, arm)[0].depth is not None
    return (_record(folder, arm) if has_goals else folder / "models" / arm.name).exists()


def kept(config: RunConfig, arm: Arm, folder: Path) -> list[ArmState]:
    """Return the states that an arm left in the folder of a run, in order."""
    if planned(config, arm)[0].depth is None:
        return [ArmState(arm)]
    return [ArmState(arm, entry["depth"]) for entry in json.loads(_record(folder, arm).read_text())["reached"]]


def save(
    arm: Arm, folder: Path, model: PreTrainedModel, tokenizer: Any, outcome: Outcome, goals: Sequence[Goal], noted: Any
) -> None:
    """Save what an arm leaves; the model ends on the CPU.

    Args:
        arm: arm.
        folder: folder of the run.
        model: model at its end.
        tokenizer: tokenizer that is saved beside.
        outcome: how the method ended.
        goals: what it was to reach.
        noted: what is noted of every state beside its own steps and loss.

    Raises:
        ValueError: there are goals, and the method says nothing of any.
    """
    models = folder / "models"
    if not goals:
        own = {"steps": outcome.steps, "stopped": outcome.stopped, "forget_loss": outcome.forget_loss}
        save_model(models / arm.name, model, tokenizer, arm.kept.dtype, {**outcome.settings, **own, **noted})
        return
    if not outcome.reached:
        raise ValueError(f"{arm.label} must keep weights on the way for unlearning.depths and at_steps, got none")
    wanted = {goal.depth: goal.loss for goal in goals}
    for state in outcome.reached:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(state.weights[name])
        own = {"steps": state.steps, "stopped": state.stopped, "forget_loss": state.forget_loss, "depth": state.depth}
        at = {"wanted_loss": wanted.get(state.depth), "within": state.within}
        notes = {**outcome.settings, **own, **at, **noted}
        save_model(models / ArmState(arm, state.depth).name, model, tokenizer, arm.kept.dtype, notes)
    reached = [
        {"depth": s.depth, "wanted_loss": wanted.get(s.depth), "steps": s.steps, "forget_loss": s.forget_loss}
        for s in outcome.reached
    ]
    missed = [{"depth": m.depth, "wanted_loss": wanted[m.depth], "stopped": m.stopped} for m in outcome.missed]
    write_json(_record(folder, arm), {"reached": reached, "missed": missed, "steps": outcome.steps})


def _record(folder: Path, arm: Arm) -> Path:
    return folder / STATES / f"{arm.name}.json"
