"""A checkpoint seen otherwise: under other names, and parts of its tensors as tensors of their own.

A part is a range of the flattened tensor, so reading one reads no more of the file. One that is turned is read whole
and transposed: an expert of (experts, in, out), whose rows a quantizer takes along the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.notes import notes_of
from unforgotten.audit.sources.safetensors_header import TensorInfo

CACHED = 2  # turned tensors held in memory: one of each side


class Part(NamedTuple):
    """A tensor of a view.

    Attributes:
        name: name of the tensor that holds it.
        shape: shape of the part, as the view shows it.
        start: place of its first weight in the flattened tensor.
        turned: whether the part is the transpose of what is stored.
        rows: of one that is turned, which rows of the transpose it is: the number of all, the first, the step; None: all.
    """

    name: str
    shape: tuple[int, ...]
    start: int = 0
    turned: bool = False
    rows: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class View:
    """A checkpoint under other names; `sha256` is that of its files.

    Attributes:
        inner: the checkpoint.
        parts: map from the view's name to what it shows, in the order of the names.
        said: notes on why it is seen so.
    """

    inner: Checkpoint
    parts: Mapping[str, Part]
    said: tuple[str, ...] = ()
    tensors: Mapping[str, TensorInfo] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Look up the tensors once."""
        found = {name: _info(self.inner.tensors[part.name], part) for name, part in self.parts.items()}
        object.__setattr__(self, "tensors", found)

    @property
    def source(self) -> Path | str:
        """See `Checkpoint.source`."""
        return self.inner.source

    @property
    def revision(self) -> str | None:
        """See `Checkpoint.revision`."""
        return self.inner.revision

    @property
    def notes(self) -> tuple[str, ...]:
        """Those of the checkpoint, and its own."""
        return (*notes_of(self.inner), *self.said)

    def read(self, name: str) -> NDArray[Any]:
        """See `Checkpoint.read`."""
        part = self.parts[name]
        if part.shape == self.inner.tensors[part.name].shape and not part.turned:
            return self.inner.read(part.name)
        return self.read_flat(name, 0, math.prod(part.shape)).reshape(part.shape)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """See `Checkpoint.read_rows`."""
        part = self.parts[name]
        if part.shape == self.inner.tensors[part.name].shape and not part.turned:
            return self.inner.read_rows(part.name, start, stop)
        row = math.prod(part.shape[1:])
        return self.read_flat(name, start * row, stop * row).reshape(stop - start, *part.shape[1:])

    def read_flat(self, name: str, start: int, stop: int, buffer: NDArray[np.uint8] | None = None) -> NDArray[Any]:
        """See `Checkpoint.read_flat`."""
        part = self.parts[name]
        if part.turned:
            return _transposed(self, part).reshape(-1)[start:stop]
        return self.inner.read_flat(part.name, part.start + start, part.start + stop, buffer)

    def check(self, name: str) -> None:
        """See `Checkpoint.check`."""
        self.inner.check(self.parts[name].name)

    def sha256(self) -> str:
        """See `Checkpoint.sha256`."""
        return self.inner.sha256()


def _info(info: TensorInfo, part: Part) -> TensorInfo:
    return info if info.shape == part.shape else replace(info, shape=part.shape, offset=None)


_LAST: list[tuple[Checkpoint, Part, NDArray[Any]]] = []


def _transposed(view: View, part: Part) -> NDArray[Any]:
    """Return a turned part; the whole is kept for the next piece of it, so that it is read once."""
    if part.rows is not None:
        count, first, step = part.rows
        whole = _transposed(view, part._replace(shape=(count, part.shape[1]), rows=None))
        return whole[first::step][: part.shape[0]]
    for inner, kept, found in _LAST:
        if inner is view.inner and kept == part:
            inner.check(part.name)
            return found
    stored = view.inner.read_flat(part.name, part.start, part.start + math.prod(part.shape))
    found = np.ascontiguousarray(stored.reshape(part.shape[::-1]).T)
    _LAST[:] = [*_LAST[-(CACHED - 1) :], (view.inner, part, found)]
    return found


def plain_parts(checkpoint: Checkpoint) -> dict[str, Part]:
    """Return every tensor of a checkpoint as a part under its own name."""
    return {name: Part(name, info.shape) for name, info in checkpoint.tensors.items()}


def inner_of(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint under all views of it."""
    while isinstance(checkpoint, View):
        checkpoint = checkpoint.inner
    return checkpoint
