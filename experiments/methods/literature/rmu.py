"""RMU: hidden states of the forget text steered to one random direction, those of the retain text kept.

L = E |h(x_f) - c u|^2 + alpha E |h(x_r) - h_target(x_r)|^2, means over tokens, h the output of one decoder layer, u a unit vector
with entries drawn uniformly from [0, 1) once, c the steering coefficient. As published, the second matrices of the feed-forward
blocks of that layer and of the two before it move, and nothing else.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from unforgotten.experiments.methods.literature.settings import RMUConfig
    from unforgotten.experiments.methods.method import Outcome, Task
    from unforgotten.experiments.methods.settings import Settings
    from unforgotten.experiments.methods.view import View
    from unforgotten.experiments.models.batches import Batch

SECOND_MATRICES = ("mlp.down_proj", "mlp.dense_4h_to_h", "mlp.c_proj", "mlp.fc2", "fc2")
BEFORE = 2
"""Layers before the steered one that move, too."""


def steered_distance(hidden: Tensor, real: Tensor, goal: Tensor) -> Tensor:
    """Return E |h - goal|^2, the mean over the real tokens of the squared distance; >= 0.

    Args:
        hidden: hidden states, (batch, length, width).
        real: True on real tokens, (batch, length).
        goal: states to reach, which broadcast to those.
    """
    distance = (hidden.float() - goal.float()).square().sum(-1)
    return distance.masked_fill(~real, 0.0).sum() / real.sum()


def random_direction(width: int, seed: int) -> Tensor:
    """Return u / |u|, the entries of u uniform on [0, 1); float32 (width,)."""
    import torch

    u = torch.rand(width, generator=torch.Generator().manual_seed(seed))
    return u / u.norm()


def hidden_states(model: PreTrainedModel, batch: Batch, layer: nn.Module) -> Tensor:
    """Return the output of a decoder layer, (batch, length, width)."""
    from unforgotten.experiments.models.scoring import next_logits

    given: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        given.append(output[0] if isinstance(output, tuple) else output)

    hook = layer.register_forward_hook(keep)
    try:
        next_logits(model, batch)
    finally:
        hook.remove()
    return given[0]


@contextmanager
def _moving(model: PreTrainedModel, layers: list[nn.Module]) -> Iterator[None]:
    """Let the second feed-forward matrices of these layers move, and nothing else."""
    before = {p: p.requires_grad for p in model.parameters()}
    chosen = {
        id(module.weight) for layer in layers for name, module in layer.named_modules() if name in SECOND_MATRICES
    }
    if not chosen:
        known = ", ".join(SECOND_MATRICES)
        raise ValueError(f"a decoder layer must have one of {known} for RMU, got none in {type(layers[0]).__name__}")
    for parameter in before:
        parameter.requires_grad_(id(parameter) in chosen)
    try:
        yield
    finally:
        for parameter, needed in before.items():
            parameter.requires_grad_(needed)


class RMU:
    """Representation misdirection for unlearning. A `Method`."""

    name = "RMU"
    statement = "hidden states of the forget text steered to a random direction, those of the retain text kept"
    source = "Li et al. 2024, arXiv 2403.03218"
    keeps_states = True

    @property
    def settings(self) -> type[RMUConfig]:
        """Type of what a profile may set for it."""
        from unforgotten.experiments.methods.literature.settings import RMUConfig

        return RMUConfig

    def unlearn(self, model: PreTrainedModel, task: Task, settings: RMUConfig) -> Outcome:
        """Descend both distances.

        Raises:
            ValueError: the model has no such layer, or it has none of SECOND_MATRICES.
        """
        import torch

        from unforgotten.experiments.arms.arithmetic import autocast
        from unforgotten.experiments.methods.descent import descend
        from unforgotten.experiments.methods.method import not_plain
        from unforgotten.experiments.methods.settings import settings_of
        from unforgotten.experiments.models.batches import pad
        from unforgotten.experiments.models.layer_inputs import decoder_layers
        from unforgotten.experiments.models.shell import linear_names

        layers = decoder_layers(model, linear_names(model))
        at = len(layers) // 4 if settings.layer is None else settings.layer
        if at >= len(layers):
            raise ValueError(f"layer must be below the {len(layers)} layers of the model, got layer={at}")
        found, steered = settings_of(task, settings), layers[at]
        task.arithmetic.cast(model)
        with torch.no_grad(), task.arithmetic.computing(), autocast(found.autocast, model.device):
            kept = [hidden_states(model, pad([row], 0).on(model.device), steered)[0] for row in task.retain]
        goal = found.own["steering"] * random_direction(kept[0].shape[-1], task.seed).to(model.device)

        def forget(view: View, settings: Settings) -> Tensor:
            return steered_distance(hidden_states(view.model, view.batch, steered), view.real, goal)

        def retain(view: View, settings: Settings) -> Tensor:
            rows = [kept[i] for i in view.batch.documents]
            own = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            return steered_distance(hidden_states(view.model, view.batch, steered), view.real, own)

        with _moving(model, list(layers[max(0, at - BEFORE) : at + 1])):
            return not_plain(descend(model, forget, retain, found, task))  # hooks hold the model: never in parts


METHODS = (RMU(),)
