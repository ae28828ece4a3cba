"""The states of an arm: the model that it ends with, or one for each depth at which weights are kept on the way.

Each state is a folder below `models/`. Where a run has such goals, `states/<arm>.json` says which were reached and which were not,
and why; it is written when the folders are there, so an arm is done where it stands. An arm that reached none of them has its last
state, of the depth "end", and so has one whose method keeps no weights on the way, as LoRA, whose factors are merged at the end;
nothing says that those are as deep as was wanted:

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
from unforgotten.experiments.methods.method import Outcome, keeps_states
from unforgotten.experiments.methods.registry import method_named
from unforgotten.experiments.methods.states import Goal, Reached
from unforgotten.experiments.models.batches import Documents
from unforgotten.experiments.models.saved import load_model, save_model
from unforgotten.experiments.models.scoring import mean_loss
from unforgotten.records.depths import END, RETRAINED, of_loss, of_steps, state_name, stem, wanted
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
        return state_name(self.arm.label, self.arm.storage, self.depth)

    @property
    def title(self) -> str:
        """Name of the state in what progress says."""
        return self.arm.title if self.depth is None else f"{self.arm.title} {stem(self.depth)}"


def planned(config: RunConfig, arm: Arm) -> list[ArmState]:
    """Return the states that an arm is to leave, in order."""
    depths = _wanted(config)
    if not depths:
        return [ArmState(arm)]
    return [ArmState(arm, depth) for depth in (depths if keeps_states(method_named(arm.method)) else (END,))]


def _wanted(config: RunConfig) -> tuple[str, ...]:
    return wanted({"depths": config.unlearning.depths, "at_steps": config.unlearning.at_steps})


def goals(config: RunConfig, arm: Arm, retrained_loss: Callable[[], float]) -> tuple[Goal, ...]:
    """Return what an arm is to reach; nothing where its method keeps no weights on the way, and the rule of the run ends it.

    Args:
        config: configuration of the run.
        arm: arm.
        retrained_loss: function that gives the mean loss of the forget passages under the retrained model.
    """
    settings = config.unlearning
    if not keeps_states(method_named(arm.method)):
        return ()
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
    return (_record(folder, arm) if _wanted(config) else folder / "models" / arm.name).exists()


def kept(config: RunConfig, arm: Arm, folder: Path) -> list[ArmState]:
    """Return the states that an arm left in the folder of a run, in order."""
    if not _wanted(config):
        return [ArmState(arm)]
    return [ArmState(arm, entry["depth"]) for entry in json.loads(_record(folder, arm).read_text())["reached"]]


def save(
    config: RunConfig,
    arm: Arm,
    folder: Path,
    saved: tuple[PreTrainedModel, Any],
    outcome: Outcome,
    goals: Sequence[Goal],
    **noted: Any,
) -> None:
    """Save what an arm leaves; the model ends on the CPU.

    Args:
        config: configuration of the run.
        arm: arm.
        folder: folder of the run.
        saved: model at its end, and the tokenizer that is saved beside.
        outcome: how the method ended.
        goals: what it was to reach.
        noted: what is noted of every state beside its own steps and loss.
    """
    models, (model, tokenizer) = folder / "models", saved
    if not _wanted(config):
        own = {"steps": outcome.steps, "stopped": outcome.stopped, "forget_loss": outcome.forget_loss}
        save_model(models / arm.name, model, tokenizer, arm.kept.dtype, {**outcome.settings, **own, **noted})
        return
    last = {name: p.detach() for name, p in model.named_parameters()}
    reached = outcome.reached or (Reached(END, outcome.steps, outcome.forget_loss, outcome.stopped, last),)
    losses = {goal.depth: goal.loss for goal in goals}
    told = []
    for state in reached:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(state.weights[name])
        own = {name: getattr(state, name) for name in ("depth", "steps", "stopped", "forget_loss", "within")}
        told.append(own | {"wanted_loss": losses.get(state.depth)})
        notes = {**outcome.settings, **told[-1], **noted}
        save_model(models / ArmState(arm, state.depth).name, model, tokenizer, arm.kept.dtype, notes)
    missed = [{"depth": m.depth, "wanted_loss": losses[m.depth], "stopped": m.stopped} for m in outcome.missed]
    write_json(_record(folder, arm), {"reached": told, "missed": missed, "steps": outcome.steps})


def _record(folder: Path, arm: Arm) -> Path:
    return folder / STATES / f"{arm.name}.json"
