"""A model's tensors as the audit describes those of a file, so that both take the same ones for matrices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import nn

from unforgotten.audit.sources.safetensors_header import TensorInfo


def tensors_of(model: nn.Module) -> Mapping[str, TensorInfo]:
    """Return the name and shape of each parameter; floats of any width count as float32, all else as bytes."""
    return {
        name: TensorInfo(Path(), np.dtype("f4" if p.is_floating_point() else "u1"), tuple(p.shape))
        for name, p in model.named_parameters()
    }


def type_of(model: nn.Module) -> str | None:
    """Return the type of a model of transformers, as its config.json names it; None of any other."""
    found = getattr(getattr(model, "config", None), "model_type", None)
    return found or None
