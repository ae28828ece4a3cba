"""Gradients of an optimizer's steps, recorded of a sample of weights: the file from which `unforgotten forecast` reads.

An `.npz` of four arrays, in which a block is 64 neighbours of one row of a matrix:

    weights      float32 (blocks, 64)           weights before the first step
    row_absmax   float32 (blocks,)              largest magnitude in the row of each block, before the first step
    gradients    float32 (steps, blocks, 64)    what the optimizer was given at each step: after clipping and unscaling
    lr           float64 (steps,)               learning rate of each step

and of numbers of AdamW, each optional: beta1 0.9, beta2 0.999, eps 1e-8, weight_decay 0.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.records.files import write_bytes

BLOCK = 64
ARRAYS = {"weights": 2, "row_absmax": 1, "gradients": 3, "lr": 1}
"""Names of the arrays, and their numbers of axes."""
SETTINGS: Mapping[str, float] = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
"""Settings of AdamW and their values where the file has none, those of torch but for the weight decay."""
LEAST_BLOCKS = 16
LEAST_STEPS = 10


@dataclass(frozen=True)
class Gradients:
    """Recorded gradients, see the module for the shapes.

    Attributes:
        weights: weights before the first step.
        row_absmax: largest magnitude in the row of each block.
        gradients: gradients of each step.
        lr: learning rate of each step.
        settings: values of SETTINGS.
    """

    weights: NDArray[np.float32]
    row_absmax: NDArray[np.float32]
    gradients: NDArray[np.float32]
    lr: NDArray[np.float64]
    settings: Mapping[str, float] = field(default_factory=lambda: dict(SETTINGS))


def write_gradients(path: Path, recorded: Gradients) -> None:
    """Write the file, whole or not at all."""
    stream = io.BytesIO()
    arrays: dict[str, Any] = {name: getattr(recorded, name) for name in ARRAYS}
    arrays |= {name: np.float64(value) for name, value in recorded.settings.items()}
    np.savez_compressed(stream, **arrays)
    write_bytes(path, stream.getvalue())


def read_gradients(path: Path) -> Gradients:
    """Read the file.

    Raises:
        ValueError: it is missing or not as the module says; one line that begins with the path.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            found: dict[str, NDArray[Any]] = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = error.strerror if isinstance(error, OSError) else "other bytes"
        raise ValueError(f"{path}: must be an .npz of recorded gradients, got {reason}") from None
    for name, axes in ARRAYS.items():
        if name not in found:
            raise ValueError(f"{path}: must have an array {name}, got {', '.join(sorted(found)) or 'none'}")
        array = found[name]
        if array.ndim != axes or not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"{path}: {name} must be of floats with {axes} axes, got {array.dtype} {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} must be finite, got nan or inf")
    _check_sizes(path, found)
    settings = {name: _number(path, name, found[name]) if name in found else SETTINGS[name] for name in SETTINGS}
    weights, row_absmax, gradients = (found[name].astype(np.float32) for name in list(ARRAYS)[:3])
    return Gradients(weights, row_absmax, gradients, found["lr"].astype(np.float64), settings)


def _check_sizes(path: Path, found: Mapping[str, NDArray[Any]]) -> None:
    steps, blocks = len(found["lr"]), len(found["weights"])
    wanted = {"weights": (blocks, BLOCK), "row_absmax": (blocks,), "gradients": (steps, blocks, BLOCK)}
    for name, shape in wanted.items():
        if found[name].shape != shape:
            raise ValueError(f"{path}: {name} must be of shape {shape}, got {found[name].shape}")
    if blocks < LEAST_BLOCKS or steps < LEAST_STEPS:
        rule = f"must hold at least {LEAST_BLOCKS} blocks and {LEAST_STEPS} steps"
        raise ValueError(f"{path}: {rule}, got {blocks} and {steps}")
    if (found["lr"] < 0).any() or not found["lr"].any():
        raise ValueError(f"{path}: lr must be at least 0 and not all 0, got {found['lr'].min()!r} as its least")
    largest = np.abs(found["weights"]).max(1)
    if (found["row_absmax"] < largest * (1 - 2.0**-8)).any():  # the one may be stored in bfloat16
        raise ValueError(f"{path}: row_absmax must be at least the largest magnitude of its block, got less")


def _number(path: Path, name: str, array: NDArray[Any]) -> float:
    if array.ndim or not np.issubdtype(array.dtype, np.number):
        raise ValueError(f"{path}: {name} must be a number, got {array.dtype} {array.shape}")
    return float(array)
