"""The work of a weights leg shared among threads: by pieces of tensors, so that no tensor is too large for the balance.

A piece is measured by itself and the sums over pieces do not depend on their order, so neither does the result on
who measured what.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from unforgotten.audit.checkpoints import Checkpoint
from unforgotten.audit.errors import CheckpointError
from unforgotten.audit.measured import TensorMeasured
from unforgotten.audit.measuring import (
    NotFiniteError,
    PieceMeasured,
    RefusedError,
    TensorTask,
    add_pieces,
    measure_piece,
    tensor_task,
)
from unforgotten.audit.pairing import check_finite
from unforgotten.audit.pieces import Piece, pieces
from unforgotten.theory.formats import Format

AHEAD = 4  # pieces a thread has waiting
Report = Callable[[str, int], None]
"""Told the tensor that comes next and how many are done."""


def measure_tensors(
    target: Checkpoint,
    unlearned: Checkpoint,
    names: Sequence[str],
    formats: Sequence[Format],
    report: Report,
    *,
    jobs: int,
    ray: str | None,
) -> Iterator[TensorMeasured]:
    """Measure the tensors in their order.

    Raises:
        CheckpointError: a weight is not finite, or a format cannot take a tensor.
    """
    with ThreadPoolExecutor(jobs) as pool:
        for done, name in enumerate(names):
            report(name, done)
            yield measure_tensor(target, unlearned, name, formats, pool, jobs)


def measure_tensor(target, unlearned, name, formats, pool, jobs):
    try:
        task = tensor_task(target, unlearned, name, formats)
        measured = add_pieces(task, _in_order(task, pool, AHEAD * jobs))
    except (RefusedError, NotFiniteError) as error:
        check_finite(target, name)
        check_finite(unlearned, name)
        assert isinstance(error, RefusedError), "what is not finite was found"
        path = unlearned.tensors[name].path
        raise CheckpointError(path, f"must fit {error.format}", error, tensor=name) from error
    return measured


def _in_order(task, pool, most):
    waiting = deque()
    for piece in pieces(task.shape):
        if len(waiting) >= most:
            yield waiting.popleft().result()
        waiting.append(pool.submit(measure_piece, task, piece))
    while waiting:
        yield waiting.popleft().result()
