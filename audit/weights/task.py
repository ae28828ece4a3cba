"""One tensor of a pair and the formats to measure it in, ready to be measured in any order of its pieces."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from unforgotten.audit.kernel.rules import EXTREMES, Extremes
from unforgotten.audit.kernel.stored_weights import Weights, extremes, own_memory
from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.flat import PIECE_WEIGHTS, BlockLayout, layout_of, pieces
from unforgotten.audit.weights.ways import Way, ways_of
from unforgotten.theory.formats.names import Format
from unforgotten.theory.formats.reference import padding


class RefusedError(ValueError):
    """A format cannot take a tensor."""

    def __init__(self, fmt: str, reason: str) -> None:
        super().__init__(fmt, reason)

    def __str__(self) -> str:
        return str(self.args[1])

    @property
    def format(self) -> str:
        """Name of the format."""
        return str(self.args[0])


class NotFiniteError(ValueError):
    """A weight is nan or inf; `check_finite` says which."""


@contextmanager
def refusing(fmt: Format) -> Iterator[None]:
    """Turn a ValueError that is raised in this context into a RefusedError of the format."""
    try:
        yield
    except CheckpointError:
        raise
    except ValueError as error:
        raise RefusedError(fmt.name, str(error)) from error


@dataclass(frozen=True)
class TensorTask:
    """One tensor of a pair and the formats to measure it in, ready to be measured in any order of its pieces.

    Attributes:
        checkpoints: checkpoints of target and unlearned model.
        name: name of the tensor in both.
        formats: formats to measure it in.
        tensor_extremes: extremes before and after of all blocks of a layout, for those that no piece can find: blocks
            that are wider than a piece, and the tensor where a format needs its largest magnitude.
        simd: the path to measure it on, see `simd.available_paths`.
        ways: way in which each format is measured, by its name, see `ways`.
    """

    checkpoints: tuple[Checkpoint, Checkpoint]
    name: str
    formats: tuple[Format, ...]
    tensor_extremes: Mapping[BlockLayout, tuple[Extremes, Extremes]]
    simd: str
    ways: Mapping[str, Way]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.checkpoints[0].tensors[self.name].shape


def tensor_task(
    target: Checkpoint, unlearned: Checkpoint, name: str, formats: Sequence[Format], simd: str
) -> TensorTask:
    """Prepare a tensor: one more pass over it where a block is wider than a piece.

    Raises:
        RefusedError: the tensor is empty, or a format takes whole blocks only and a row has others.
    """
    shape = target.tensors[name].shape
    check_formats(shape, formats)
    tensor_extremes = {
        layout: (_tensor_extremes(target, name, layout, seen), _tensor_extremes(unlearned, name, layout, seen))
        for layout, seen in _tensor_layouts(formats, shape).items()
    }
    pair = target, unlearned
    return TensorTask(pair, name, tuple(formats), tensor_extremes, simd, ways_in(pair, name, formats, simd))


def ways_in(pair: tuple[Checkpoint, Checkpoint], name: str, formats: Sequence[Format], simd: str) -> Mapping[str, Way]:
    """Return how each format is measured in a tensor of a pair, by the name of the format."""
    before, after = (checkpoint.tensors[name] for checkpoint in pair)
    return ways_of(formats, before.shape, (before.dtype.name, after.dtype.name), simd)


def check_formats(shape: tuple[int, ...], formats: Sequence[Format]) -> None:
    """Check that formats can take a tensor of this shape.

    Raises:
        RefusedError: the tensor is empty, or a format takes whole blocks only and a row has others.
    """
    if math.prod(shape) == 0:
        reason = f"a tensor to quantize must not be empty, got shape={shape}"
        raise RefusedError(formats[0].name, reason)
    for fmt in formats:
        with refusing(fmt):
            padding(shape[-1], fmt)


def _tensor_layouts(formats: Sequence[Format], shape: tuple[int, ...]) -> dict[BlockLayout, frozenset[str]]:
    """Return the layouts of blocks wider than a piece, and what statistics see of those."""
    total = math.prod(shape)
    found: dict[BlockLayout, frozenset[str]] = {}
    for fmt in formats:
        own = {layout_of(fmt, shape)} if fmt.statistic in EXTREMES and fmt.tile is None else set()
        beyond_pieces = {layout for layout in own if layout.size > PIECE_WEIGHTS}
        for layout in beyond_pieces | ({BlockLayout(total, total)} if fmt.tensor_range else set()):
            found[layout] = found.get(layout, frozenset()) | {fmt.statistic}
    return found


def _tensor_extremes(checkpoint: Checkpoint, name: str, layout: BlockLayout, statistics: frozenset[str]) -> Extremes:
    """Return the extremes of all blocks of a tensor, which may be larger than a piece."""
    shape = checkpoint.tensors[name].shape
    count = layout.index_of(math.prod(shape) - 1) + 1
    low, high = np.full(count, np.inf, np.float32), np.full(count, -np.inf, np.float32)
    low_first = np.zeros(count, bool)
    for piece in pieces(shape):
        nbytes = (piece.stop - piece.start) * checkpoint.tensors[name].dtype.itemsize
        weights = Weights(checkpoint.read_flat(name, *piece, own_memory(0, nbytes)))
        part = extremes(weights, slice(None), layout.ends(*piece), statistics)
        at = slice(layout.index_of(piece.start), layout.index_of(piece.stop - 1) + 1)
        larger = np.maximum(-part.low, part.high) > np.maximum(-low[at], high[at])
        low_first[at] = np.where(larger, part.low_first, low_first[at])
        low[at], high[at] = np.minimum(low[at], part.low), np.maximum(high[at], part.high)
    return Extremes(low, high, low_first)
