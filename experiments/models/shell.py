"""One model that takes the weights of many: what is measured of a state is measured in a shell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from unforgotten.experiments.models.batches import Documents
from unforgotten.experiments.models.runtime import with_layers
from unforgotten.experiments.models.states import fill
from unforgotten.experiments.quantizers.quantizer import Calibration, State
from unforgotten.experiments.quantizers.registry import quantize_state, text_of


@dataclass(frozen=True)
class Shell:
    """A model that takes the weights of the moment.

    Attributes:
        model: the model.
        tokenizer: its tokenizer.
        texts: token ids of what quantizers are calibrated on, by the names of `quantizers/quantizer.TEXTS`.
    """

    model: PreTrainedModel
    tokenizer: Any
    texts: Mapping[str, Documents] = field(default_factory=dict)

    @cached_property
    def names(self) -> list[str]:
        """Names of the weights that quantizers touch."""
        return linear_names(self.model)

    @property
    def context(self) -> int:
        """Longest input in tokens."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 2048)

    def with_state(self, state: State) -> PreTrainedModel:
        """Return the model with these weights."""
        with_layers(self.model, state)
        return fill(self.model, state)

    def quantized(self, state: State, format_name: str) -> State:
        """Return Q(state), or the state itself for "none". To calibrate, the model takes the weights of the state.

        Raises:
            ValueError: as `quantize_state`; or the format is calibrated on a text that is not among `texts`.
        """
        if format_name == "none":
            return state
        text = text_of(format_name)
        if text is None:
            return quantize_state(state, self.names, format_name)
        if not self.texts.get(text):
            known = ", ".join(name for name, documents in self.texts.items() if documents) or "none"
            raise ValueError(f"{format_name} is calibrated on {text} text, got texts: {known}")
        return quantize_state(state, self.names, format_name, Calibration(self.with_state(state), self.texts[text]))


def linear_names(model: nn.Module) -> list[str]:
    """Return the weights that quantizers touch: of every linear layer but the output head."""
    return sorted(
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] != "lm_head"
    )


def state_of(model: PreTrainedModel) -> State:
    """Return a copy of the weights, float32."""
    return {k: v.detach().clone().to(torch.float32) for k, v in model.state_dict().items()}
