"""One quantized layer: its parts, checked as they are taken, and what decodes it in units that stand alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.quantization import Scheme
from unforgotten.audit.sources.safetensors_header import FLOATS

FLOAT_DTYPES = frozenset(FLOATS.values())
INT32, INT64, INT8, U8 = (np.dtype(d) for d in ("<i4", "<i8", "i1", "u1"))
FLOAT8 = np.dtype("float8_e4m3fn")


class CodedWeights(NamedTuple):
    """Codes as they are stored, and their values in float32, of one shape."""

    codes: NDArray[Any]
    values: NDArray[Any]


class Zeros(NamedTuple):
    """Zero points of one layer.

    Attributes:
        values: zero points, uint8 (groups, outputs).
        words: the same, packed as format v2 stores them, uint32.
        borrowed: number of those that a runtime which adds one to each code by itself reads otherwise.
        bits: number of bits of a zero point.
    """

    values: NDArray[np.uint8]
    words: NDArray[np.uint32]
    borrowed: int
    bits: int


@dataclass(frozen=True)
class Layer:
    """One quantized layer.

    Attributes:
        name: name of the layer, without the ending of its parts.
        path: the file, for messages.
        shape: shape of the weights, as the layout orders them.
        parts: the names of its tensors.
        units: number of units, each of which can be decoded alone.
        unit_weights: number of weights in a unit.
        decode: function that decodes units start … stop - 1.
        zeros: function that reads the zero points of GPTQ, whose convention is not in the file; None elsewhere.
        format: name of the format it is stored in, where that may be another than the checkpoint's; else empty.
    """

    name: str
    path: Path
    shape: tuple[int, ...]
    parts: frozenset[str]
    units: int
    unit_weights: int
    decode: Callable[[int, int], CodedWeights]
    zeros: Callable[[], Zeros] | None = None
    format: str = ""


class CodeLayout(NamedTuple):
    """The endings of the tensors that mark a layer, and what opens the layer of a name."""

    marks: tuple[str, ...]
    open: Callable[[Scheme, Checkpoint, str], Layer]


class Parts:
    """The tensors of one layer, checked as they are taken."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self.checkpoint, self.name = checkpoint, name
        self.taken: dict[str, str] = {}

    def has(self, ending: str) -> bool:
        """Return whether the layer has the part of this ending."""
        return self.name + ending in self.checkpoint.tensors

    def take(self, ending: str, dtypes: frozenset[np.dtype[Any]], *shapes: tuple[int | None, ...]) -> str:
        """Return the name of a part whose dtype and shape are among these; None fits any size."""
        full = self.name + ending
        if full not in self.checkpoint.tensors:
            rule = f"must be there beside the other parts of {self.name!r}"
            raise CheckpointError(self.checkpoint.source, rule, "no such tensor", tensor=full)
        info = self.checkpoint.tensors[full]
        if info.dtype not in dtypes:
            rule = f"must be {' or '.join(sorted(d.name for d in dtypes))}"
            raise CheckpointError(info.path, rule, info.dtype.name, tensor=full)
        if not any(_fits(info.shape, shape) for shape in shapes):
            wanted = " or ".join(str(["any" if n is None else n for n in s]) for s in shapes)
            raise CheckpointError(info.path, f"must have the shape {wanted}", list(info.shape), tensor=full)
        if 0 in info.shape:
            raise CheckpointError(info.path, "must hold a weight", list(info.shape), tensor=full)
        self.taken[ending] = full
        return full

    def shape(self, ending: str) -> tuple[int, ...]:
        """Return the shape of a part."""
        return self.checkpoint.tensors[self.name + ending].shape

    def read(self, ending: str) -> NDArray[Any]:
        """Return a part whole, as it is stored."""
        return self.checkpoint.read(self.name + ending)

    def float32(self, ending: str) -> NDArray[Any]:
        """Return a part whole, in float32."""
        return self.read(ending).astype(np.float32)

    def refuse(self, ending: str, rule: str, got: object) -> CheckpointError:
        """Return the error of a part that breaks a rule."""
        full = self.name + ending
        return CheckpointError(self.checkpoint.tensors[full].path, rule, got, tensor=full)

    def layer(
        self,
        mark: str,
        shape: tuple[int, ...],
        units: int,
        unit_weights: int,
        decode: Callable[[int, int], CodedWeights],
    ) -> Layer:
        """Return the layer of the parts that were taken; `mark` is the part whose file messages name."""
        path = self.checkpoint.tensors[self.name + mark].path
        parts = frozenset(self.taken.values())
        return Layer(self.name, path, shape, parts, units, unit_weights, decode)


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(w in (None, n) for n, w in zip(shape, wanted, strict=True))


def unpack(words: NDArray[Any], bits: int, count: int) -> NDArray[np.uint8]:
    """Unpack `count` codes from each row of 32-bit words, lowest bits first, also across words.

    Args:
        words: words, int32 (rows, n).
        bits: number of bits of a code, 1 … 8.
        count: codes in a row, at most 32 n / bits.
    """
    raw = np.ascontiguousarray(words).view(np.uint8)
    flat = np.unpackbits(raw, axis=1, bitorder="little", count=count * bits)
    powers = (1 << np.arange(bits)).astype(np.uint8)
    return (flat.reshape(len(words), count, bits) * powers).sum(axis=2, dtype=np.uint8)


def only(*dtypes: np.dtype[Any]) -> frozenset[np.dtype[Any]]:
    """Return the set of the dtypes that a part may have."""
    return frozenset(dtypes)


def group_of(scheme: Scheme, parts: Parts, ending: str, ins: int, groups: int) -> NDArray[np.intp]:
    """Return the group of scales of every input: as stored, or in order."""
    if not parts.has(ending):
        size = ins if scheme.group_size < 0 else scheme.group_size
        return np.arange(ins, dtype=np.intp) // max(1, size)
    parts.take(ending, only(INT32, INT64), (ins,))
    stored = parts.read(ending)
    bad = np.flatnonzero((stored < 0) | (stored >= groups))
    if bad.size:
        raise parts.refuse(ending, f"must hold groups in 0 … {groups - 1}", int(stored[bad[0]]))
    return stored.astype(np.intp)
