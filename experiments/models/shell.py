"""One model that takes the weights of many: what is measured of a state is measured in a shell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from unforgotten.audit.mixes.mix import formats_of, is_mix
from unforgotten.audit.sources.matching.kinds import EXPERT_PART, is_quantized
from unforgotten.experiments.models.batches import Documents
from unforgotten.experiments.models.matrices.conv1d import conv1d_names, turned
from unforgotten.experiments.models.matrices.experts import by_expert, expert_names, fused_experts, joined
from unforgotten.experiments.models.runtime import RuntimeState, with_layers
from unforgotten.experiments.models.states import LazyState, fill
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

    @cached_property
    def experts(self) -> dict[str, int]:
        """Number of experts in each tensor that holds several."""
        weights = dict(self.model.named_parameters())
        return {name: len(weights[name]) for name in fused_experts(self.model)}

    @cached_property
    def conv1d(self) -> frozenset[str]:
        """Names of the weights that are stored as (in, out)."""
        return conv1d_names(self.model) & set(self.names)

    def shown(self, state: State) -> State:
        """Return the state as quantizers see it: each expert a matrix of its own, each matrix (out, in)."""
        return turned(by_expert(state, self.experts), self.conv1d)

    @property
    def context(self) -> int:
        """Longest input in tokens."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 2048)

    def with_state(self, state: State) -> PreTrainedModel:
        """Return the model with these weights."""
        with_layers(self.model, state)
        return fill(self.model, state)

    def touched(self, format_name: str) -> list[str]:
        """Return the names of the weights that a format changes: a mix takes embeddings and heads too, see `audit.mixes`."""
        if not is_mix(format_name):
            return self.names
        return list(dict.fromkeys(EXPERT_PART.sub("", name) for name in self.mixed(format_name)))

    def mixed(self, format_name: str) -> dict[str, str]:
        """Return the format that a mix gives to each matrix; one of several experts in a tensor is `NAME[3]`.

        Raises:
            ValueError: the mix cannot be told for this model.
        """
        own, held = dict(self.model.named_parameters()), self.experts  # parameters come once where they are tied
        shapes = {name: tuple(w.shape) for name, w in own.items() if name not in held}
        shapes |= {name: shapes[name][::-1] for name in self.conv1d}
        shapes |= {f"{name}[{i}]": tuple(own[name].shape[1:]) for name, count in held.items() for i in range(count)}
        found = formats_of(format_name, shapes, ())
        return {name: fmt.name for name, fmt in found.items()}

    def check(self, format_names: Iterable[str]) -> None:
        """Refuse formats that no matrix, experts in one tensor or Conv1D cannot have. Nothing is computed.

        Raises:
            ValueError: as `quantized`, of such a format.
        """
        for name in format_names:
            self._check_touched(name)
            if self.experts or self.conv1d:
                self.quantized(self.model.state_dict(), name)

    def quantized(self, state: State, format_name: str) -> State:
        """Return Q(state), or the state itself for "none"; each expert is a matrix of its own, and Conv1D is turned.

        To calibrate, the model takes the weights of the state.

        Raises:
            ValueError: as `quantize_state`; the format is calibrated on a text that is not among `texts`; it touches no
                weight; or it sees layers at work, and one tensor holds several experts or a layer is Conv1D.
        """
        if format_name == "none":
            return state
        self._check_touched(format_name)
        if is_mix(format_name):
            return self._in_mix(state, format_name)
        text = text_of(format_name)
        if self.experts or self.conv1d:
            found = None if text else quantize_state(self.shown(state), self._shown_names(), format_name)
            if found is None or isinstance(found, RuntimeState):
                raise ValueError(f"{format_name} sees layers at work, {self._not_at_work()}")
            return self._stored(found, state)
        if text is None:
            return quantize_state(state, self.names, format_name)
        if not self.texts.get(text):
            known = ", ".join(name for name, documents in self.texts.items() if documents) or "none"
            raise ValueError(f"{format_name} is calibrated on {text} text, got texts: {known}")
        return quantize_state(state, self.names, format_name, Calibration(self.with_state(state), self.texts[text]))

    def _check_touched(self, format_name: str) -> None:
        if format_name != "none" and not self.touched(format_name):
            rule = f"must have a matrix that quantizers touch, for {format_name} would change nothing"
            raise ValueError(f"{type(self.model).__name__} {rule}; got no linear layer but output heads and routers")

    def _not_at_work(self) -> str:
        if self.experts:
            return f"which experts in one tensor are not: {min(self.experts)}"
        return f"which must be nn.Linear for it, got Conv1D: {min(self.conv1d)}"

    def _shown_names(self) -> list[str]:
        return expert_names(self.names, self.experts)

    def _stored(self, found: State, state: State) -> State:
        """Undo `shown`, by the names of a state."""
        return joined(turned(found, self.conv1d), state, self.experts)

    def _in_mix(self, state: State, format_name: str) -> State:
        """Return the state with each matrix in the format that a mix gives it."""
        kinds = {EXPERT_PART.sub(lambda at: f".{at[0][1:-1]}", k): v for k, v in self.mixed(format_name).items()}
        shown = self.shown(state)
        by_format = {
            kind: quantize_state(shown, [k for k in kinds if kinds[k] == kind], kind) for kind in set(kinds.values())
        }
        found = LazyState(shown, lambda name: by_format[kinds[name]][name] if name in kinds else shown[name])
        return self._stored(found, state)


def linear_names(model: nn.Module) -> list[str]:
    """Return the weights that quantizers touch: of every linear layer and every expert, but no output head and no router.

    Of linear layers, Conv1D of GPT-2 among them, they are those that the audit takes for such by their names.

    Raises:
        ValueError: experts are kept in an order of their axes that is not out, in.
    """
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    linear = {
        f"{name}.weight": tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    return sorted([name for name, shape in linear.items() if is_quantized(name, shape)] + list(fused_experts(model)))


def state_of(model: PreTrainedModel) -> State:
    """Return a copy of the weights, float32, on the device of the model."""
    return {k: v.detach().clone().to(torch.float32) for k, v in model.state_dict().items()}
