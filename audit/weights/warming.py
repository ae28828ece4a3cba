"""Have the kernels compiled before there are processes that would each compile them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from unforgotten.audit.run import DEFAULT_FORMATS
from unforgotten.audit.sources.flat import pieces
from unforgotten.audit.sources.safetensors_header import TensorInfo
from unforgotten.audit.weights.batches import Work
from unforgotten.audit.weights.piece import measure_piece
from unforgotten.audit.weights.task import RefusedError, tensor_task
from unforgotten.theory.formats.names import Format

SHAPE = 2, 256  # whole blocks of every format
WARM_DTYPES = frozenset({"bfloat16", "float32"})
WARM_FORMATS = (DEFAULT_FORMATS, ("nf4-b64",), ("fp8-row", "q4_0"))
"""What most audits ask for, in the order that they do: the first format of a pair counts more than the others."""


class InMemory:
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

    def read_flat(self, name: str, start: int, stop: int, buffer: NDArray[np.uint8] | None = None) -> NDArray[Any]:
        """See `Checkpoint.read_flat`."""
        return self.w.reshape(-1)[start:stop]

    def check(self, name: str) -> None:
        """See `Checkpoint.check`: nothing was mapped."""

    def sha256(self) -> str:
        """Return an empty digest, as there is no file."""
        return ""


def measure_sample(dtypes: Iterable[DTypeLike], formats: Sequence[Format], simd: str) -> None:
    """Measure a few weights, so that this process has the kernels, and the cache of machine code, if there is one.

    Args:
        dtypes: dtypes of the weights; both models have the same.
        formats: formats in the order of the audit, as the first one counts what needs no format.
        simd: path of the kernel, one of `simd.available_paths()`.
    """
    for dtype in dtypes:
        sample = InMemory((np.arange(np.prod(SHAPE)) % 256 - 128.0).reshape(SHAPE).astype(dtype))
        with suppress(RefusedError):  # whoever measures the whole pair says so
            task = tensor_task(sample, sample, "w", formats, simd)
            for piece in pieces(task.shape):
                measure_piece(task, piece)


def compile_for(work: Work, names: Iterable[str]) -> None:
    """Put into the cache what workers will need, unless all of it is what they are forked with.

    Else each of them would compile it, all at the same time, where one of them could for all.

    Args:
        work: pair, formats and path.
        names: names of the tensors that are measured.
    """
    dtypes = {c.tensors[name].dtype for name in names for c in (work.target, work.unlearned)}
    formats = tuple(fmt.name for fmt in work.formats)
    if formats not in WARM_FORMATS or not {dtype.name for dtype in dtypes} <= WARM_DTYPES:
        measure_sample(sorted(dtypes, key=str), work.formats, work.simd)
