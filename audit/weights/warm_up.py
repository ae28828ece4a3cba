"""Loads the compiled kernels, by measuring a few weights on import: what a worker is forked from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.kernel.simd import available_paths
from unforgotten.audit.run import DEFAULT_FORMATS
from unforgotten.audit.sources.flat import pieces
from unforgotten.audit.sources.safetensors_header import TensorInfo
from unforgotten.audit.weights.piece import measure_piece
from unforgotten.audit.weights.task import tensor_task
from unforgotten.theory.formats.names import format_named

FORMATS = (DEFAULT_FORMATS, ("nf4-b64",), ("fp8-row", "q4_0"))
"""What most audits ask for, in the order that they do: the first format of a pair counts more than the others."""


class Few:
    """A checkpoint of one small tensor, in memory."""

    source, revision = "memory", None

    def __init__(self, w: NDArray[Any]) -> None:
        self.w = w
        self.tensors = {"w": TensorInfo(Path("memory"), w.dtype, w.shape)}

    def read(self, name: str) -> NDArray[Any]:
        """See `Checkpoint.read`."""
        return self.w

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """See `Checkpoint.read_rows`."""
        return self.w[start:stop]

    def sha256(self) -> str:
        """No file, no digest."""
        return ""


for dtype in (ml_dtypes.bfloat16, np.float32):
    few = Few(np.arange(-128, 128).reshape(2, 128).astype(dtype))
    for names in FORMATS:
        task = tensor_task(few, few, "w", [format_named(name) for name in names], available_paths()[0])
        for piece in pieces(task.shape):
            measure_piece(task, piece)
