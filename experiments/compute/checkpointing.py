"""Activations that are computed again in the backward pass, not kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


@contextmanager
def checkpointed(model: PreTrainedModel, *, enabled: bool) -> Iterator[None]:
    """Keep no activations within decoder layers while this lasts; values and gradients are the same bit for bit.

    transformers does so in training mode alone. The layers are said to be in it, what is in them stays as it is: nothing is dropped
    out of a model in evaluation mode.

    Raises:
        ValueError: the model has no such layers.
    """
    if not enabled:
        yield
        return
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"compute.gradient_checkpointing must be off for {type(model).__name__}, got none of its layers"
        )
    before = [layer.training for layer in layers]
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()
        for layer, training in zip(layers, before, strict=True):
            layer.training = training
