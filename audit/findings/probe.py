"""A second, small look at a pair: some rows of every quantized tensor, for what sums over a tensor cannot show.

The rows are whole and neighbours in runs, so that every block of them is one of the checkpoint. Which rows, the name of
the tensor decides: two audits look at the same ones.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.theory.formats.names import Format, format_named

TENSOR_WEIGHTS = 1 << 15  # looked at in one tensor, about
ALL_WEIGHTS = 1 << 23  # and in all, about
RUNS = 8  # of neighbouring rows


@dataclass(frozen=True)
class Run:
    """Neighbouring rows of both checkpoints.

    Attributes:
        tensor: name of the tensor.
        start: number of the first row.
        whole: whether they are the whole tensor.
        w, w_new: weights before and after, float32 (rows, columns).
    """

    tensor: str
    start: int
    whole: bool
    w: NDArray[Any]
    w_new: NDArray[Any]


@dataclass(frozen=True)
class Sample:
    """What the probe saw of one tensor: its shape and the runs."""

    tensor: str
    shape: tuple[int, int]
    runs: tuple[Run, ...]


def look(target: Checkpoint, unlearned: Checkpoint, names: Sequence[str], formats: Sequence[str]) -> list[Sample]:
    """Read a sample of rows of each tensor, TENSOR_WEIGHTS weights at most, or one row a run where rows are longer.

    Args:
        target: checkpoint before unlearning.
        unlearned: checkpoint after unlearning, under the target's names.
        names: names of matrices that are in both.
        formats: formats whose flat blocks the runs must not cut.
    """
    flat = [format_named(f) for f in formats]
    sizes = [f.block_size or 1 for f in flat if f.block == "flat"]
    most = min(TENSOR_WEIGHTS, ALL_WEIGHTS // max(1, len(names)))
    return [_sample(target, unlearned, name, most, sizes) for name in names]


def _sample(target: Checkpoint, unlearned: Checkpoint, name: str, most: int, blocks: Sequence[int]) -> Sample:
    rows, columns = target.tensors[name].shape
    runs = []
    for start, stop in _ranges(name, rows, columns, most, blocks):
        w, w_new = (np.asarray(c.read_rows(name, start, stop), np.float32) for c in (target, unlearned))
        runs.append(Run(name, start, stop - start == rows, w, w_new))
    return Sample(name, (rows, columns), tuple(runs))


def _ranges(name: str, rows: int, columns: int, most: int, blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield RUNS ranges of rows, each at a random place of its own part of the tensor, none through a flat block."""
    unit = math.lcm(*(block // math.gcd(columns, block) for block in blocks), 1)
    units = -(-rows // unit)
    runs = min(RUNS, units)
    length = max(1, most // (runs * unit * columns))  # in units
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    for run in range(runs):
        first, last = units * run // runs, units * (run + 1) // runs
        size = min(length, last - first)
        at = first + int(rng.integers(last - first - size + 1))
        yield at * unit, min((at + size) * unit, rows)


def fits(fmt: Format, run: Run) -> bool:
    """Return whether the format's parameters of these rows can be told from the rows alone."""
    return run.whole or not fmt.of_tensor
