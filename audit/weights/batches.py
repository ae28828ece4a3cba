"""What is shared out of a weights leg, a batch: some pieces of one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from unforgotten.audit.kernel.simd import checked_path
from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.flat import pieces
from unforgotten.audit.weights.piece import PieceMeasured, measure_piece
from unforgotten.audit.weights.task import TensorTask, tensor_task
from unforgotten.theory.formats.names import Format

BATCH_PIECES = 32  # at most; a larger tensor is shared out


@dataclass(frozen=True, eq=False)
class Work:
    """What every worker needs to know. A work equals itself only.

    Attributes:
        target: checkpoint before unlearning.
        unlearned: checkpoint after unlearning.
        formats: formats to measure in, each in one tensor at least.
        simd: path of `simd.available_paths` that all workers take.
        by_tensor: formats of each tensor that is not measured in all of them, by its name.
    """

    target: Checkpoint
    unlearned: Checkpoint
    formats: tuple[Format, ...]
    simd: str
    by_tensor: Mapping[str, tuple[Format, ...]] = field(default_factory=dict)

    def formats_of(self, name: str) -> tuple[Format, ...]:
        """Return the formats that a tensor is measured in."""
        return self.by_tensor.get(name, self.formats)


class Batch(NamedTuple):
    """Pieces first … last - 1 of one tensor."""

    name: str
    first: int
    last: int


def batches_of(work: Work, name: str) -> list[Batch]:
    """Return the batches of a tensor, in order; one at least."""
    count = max(1, sum(1 for _ in pieces(work.target.tensors[name].shape)))
    return [Batch(name, first, min(first + BATCH_PIECES, count)) for first in range(0, count, BATCH_PIECES)]


def measure_batch(work: Work, batch: Batch) -> list[PieceMeasured]:
    """Measure some pieces of one tensor, in this process.

    Raises:
        RefusedError: see `measure_piece`.
        NotFiniteError: see `measure_piece`.
        CheckpointError: a file changed since it was opened.
    """
    task = _task(work, batch.name)
    own = islice(pieces(task.shape), batch.first, batch.last)
    measured = [measure_piece(task, piece) for piece in own]
    for checkpoint in task.checkpoints:
        checkpoint.check(task.name)
    return measured


@lru_cache(maxsize=1)
def _task(work: Work, name: str) -> TensorTask:
    """Return the task of a tensor, prepared once for batches that follow each other."""
    return tensor_task(work.target, work.unlearned, name, work.formats_of(name), checked_path(work.simd))
