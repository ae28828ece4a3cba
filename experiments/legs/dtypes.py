"""The dtype that models run in, as `--dtype` names it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from unforgotten.audit.sources.checkpoint import open_checkpoint
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.safetensors_header import FLOATS

FLOAT_NAMES = frozenset(dtype.name for dtype in FLOATS.values())
NARROW = ("bfloat16", "float16")


def dtype_named(name: str, folders: Iterable[Path]) -> torch.dtype:
    """Return the dtype of a name of `--dtype`: one of torch's, or "auto", which rounds no weight.

    Args:
        name: float32, bfloat16, float16 or auto: the dtype in which all float tensors of all models are stored, where that
            is one of 16 bits, and float32 otherwise.
        folders: directories of the models.
    """
    if name != "auto":
        return getattr(torch, name)
    stored = {kind for folder in folders for kind in _stored(folder)}
    return getattr(torch, stored.pop()) if stored in ({"bfloat16"}, {"float16"}) else torch.float32


def _stored(folder: Path) -> set[str]:
    """Return the names of the dtypes of a model's float tensors; float32 where its files do not tell."""
    try:
        tensors = open_checkpoint(folder).tensors.values()
    except CheckpointError:
        return {"float32"}
    return {info.dtype.name for info in tensors if info.dtype.name in FLOAT_NAMES}
