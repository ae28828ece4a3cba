"""The weights of the models of a run, read from their files when they are asked for; one model takes them in turn.

In go the directory of the models and the name of one of them; out comes what gives the state of any:

    states = saved_states(Path("runs/tiny-seed0/models"), "target", config.compute)
    fill(states.model, states.of("retrained"))
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from unforgotten.experiments.compute.device import device_of
from unforgotten.experiments.compute.settings import ComputeConfig
from unforgotten.experiments.models.saved import load_model
from unforgotten.experiments.models.states import holds, stored_state
from unforgotten.experiments.quantizers.quantizer import State


@dataclass(frozen=True)
class SavedStates:
    """States of models of one shape.

    Attributes:
        models: directory of the models' directories.
        model: model that takes their weights; the only whole copy.
        streamed: whether files name the weights as the model does; if not, each state is loaded as a whole.
    """

    models: Path
    model: PreTrainedModel
    streamed: bool

    def of(self, name: str) -> State:
        """Return the weights of a model, float32, by its name."""
        state = stored_state(self.models / name, self.model) if self.streamed else None
        return load_model(self.models / name).state_dict() if state is None else state


def saved_states(models: Path, first: str, compute: ComputeConfig) -> SavedStates:
    """Return the states of models, with one of them loaded to measure them all, as `compute` says."""
    model = load_model(models / first)
    stored = stored_state(models / first, model)
    streamed = stored is not None and holds(model, stored)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, compute.evaluation_dtype))
    torch.nn.Module.to(model, device_of(compute))  # in place
    return SavedStates(models, model, streamed)
