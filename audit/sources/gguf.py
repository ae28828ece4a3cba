"""A GGUF file as a checkpoint: floats as they are stored, quantized types decoded to float32.

In goes a path, out comes a `Checkpoint`:

    checkpoint = open_gguf(Path("model-Q4_K_M.gguf"))
    checkpoint.read("blk.0.attn_q.weight")  # float32, (out, in)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.files import LocalFile, WeightFile, open_file, sha256_of
from unforgotten.audit.sources.gguf_decode import BLOCK_TYPES
from unforgotten.audit.sources.gguf_header import GgufTensor, read_gguf_header
from unforgotten.audit.sources.safetensors_header import TensorInfo
from unforgotten.records.extras import pip_install
from unforgotten.theory.formats.gguf import fallback_of

PLAIN: Mapping[int, np.dtype[Any]] = {
    0: np.dtype("<f4"),
    1: np.dtype("<f2"),
    24: np.dtype("i1"),
    25: np.dtype("<i2"),
    26: np.dtype("<i4"),
    27: np.dtype("<i8"),
    30: np.dtype(ml_dtypes.bfloat16),
}
"""Number of a type that is stored as numbers -> its dtype."""
OWN: Mapping[int, str] = {2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K"}
"""Number of a type that `gguf_decode` knows -> its name."""
UNDECODED = (ValueError, KeyError, NotImplementedError)  # raised by gguf for what it cannot decode
DECODE_BLOCKS = 1 << 13


class StoredType(NamedTuple):
    """One of the types that tensors of a GGUF file are stored as.

    Attributes:
        name: name of the type.
        weights: number of weights in one block.
        nbytes: number of bytes of one block.
        dtype: dtype of the values that reading gives.
    """

    name: str
    weights: int
    nbytes: int
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class GgufCheckpoint:
    """The tensors of one GGUF file, with axes in numpy's order; `sha256` is that of the file.

    Attributes:
        source: the path as given.
        file: the file.
        types: how each tensor is stored, by name.
        tensors: dtype and shape of every tensor, see `Checkpoint.tensors`.
        architecture: name of the architecture, as llama; empty if the file does not say.
    """

    source: Path
    file: WeightFile
    types: Mapping[str, StoredType]
    tensors: Mapping[str, TensorInfo]
    architecture: str = ""

    @property
    def revision(self) -> None:
        """A local file has none."""
        return None

    def read(self, name: str) -> NDArray[Any]:
        """See `Checkpoint.read`."""
        info = self.tensors[name]
        return self._values(name, 0, math.prod(info.shape)).reshape(info.shape)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """See `Checkpoint.read_rows`."""
        info = self.tensors[name]
        if len(info.shape) == 1:  # a row is one weight, and may lie within a block
            return self.read(name)[start:stop]
        row = math.prod(info.shape[1:])
        flat = self._values(name, start * row, stop * row)
        return flat.reshape(stop - start, *info.shape[1:])

    def read_flat(self, name: str, start: int, stop: int, buffer: NDArray[np.uint8] | None = None) -> NDArray[Any]:
        """Decode weights start … stop - 1 of the flattened tensor, see `Checkpoint.read_flat`: the blocks that hold them."""
        size = self.types[name].weights
        first, last = start // size * size, -(-stop // size) * size
        return self._values(name, first, last)[start - first : stop - first]

    def check(self, name: str) -> None:
        """See `Checkpoint.check`."""
        if isinstance(self.file, LocalFile):
            self.file.check()

    def read_blocks(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Read blocks start … stop - 1 as they are stored, uint8 (blocks, bytes of one)."""
        stored, offset = self.types[name], self.tensors[name].offset
        assert offset is not None, "a tensor of a file has a place"
        raw = self.file.read(offset + start * stored.nbytes, (stop - start) * stored.nbytes)
        return raw.reshape(stop - start, stored.nbytes)

    def _values(self, name: str, begin: int, end: int) -> NDArray[Any]:
        """Decode weights begin … end - 1 in the order of storage; both at the edges of blocks."""
        stored = self.types[name]
        values = np.empty(end - begin, stored.dtype)
        first, last = begin // stored.weights, end // stored.weights
        step = DECODE_BLOCKS * max(1, 256 // stored.weights)
        for start in range(first, last, step):
            stop = min(start + step, last)
            place = (start - first) * stored.weights
            part = decode_blocks(stored, self.read_blocks(name, start, stop))
            values[place : place + part.size] = part
        return values

    def sha256(self) -> str:
        """Return the SHA-256 of the file."""
        return sha256_of([self.file])


def is_gguf(source: Path) -> bool:
    """Return whether the path has the name of a GGUF file and is no directory."""
    return source.name.lower().endswith(".gguf") and not source.is_dir()


def open_gguf(source: Path) -> GgufCheckpoint:
    """Read and check the header of a GGUF file.

    Raises:
        CheckpointError: it breaks a rule of the format, or holds a type that needs the package `gguf`.
    """
    return gguf_of(open_file(source))


def gguf_of(file: WeightFile) -> GgufCheckpoint:
    """Return the checkpoint of a GGUF file that is open.

    Raises:
        CheckpointError: as `open_gguf`.
    """
    header = read_gguf_header(file)
    types = {t.name: _checked_type(file, t) for t in header.tensors}
    tensors: dict[str, TensorInfo] = {}
    for t in sorted(header.tensors, key=lambda t: t.name):
        stored = types[t.name]
        name = "" if stored.weights == 1 else stored.name
        tensors[t.name] = TensorInfo(file.path, stored.dtype, t.shape, header.data + t.offset, name)
    _check_cover(file, header.tensors, types, header.data, header.alignment)
    return GgufCheckpoint(file.path, file, types, tensors, header.architecture)


def _checked_type(file: WeightFile, tensor: GgufTensor) -> StoredType:
    stored = _stored_type_of(file, tensor)
    if tensor.shape and tensor.shape[-1] % stored.weights:
        other = fallback_of(stored.name.lower(), tensor.shape[-1])
        hint = "" if other is None else f" (llama.cpp stores such rows as {other.upper()})"
        rule = f"must have rows of a multiple of {stored.weights} weights for {stored.name}{hint}"
        raise CheckpointError(file.path, rule, tensor.shape[-1], tensor=tensor.name)
    if not tensor.shape and stored.weights > 1:
        rule = f"must have an axis for {stored.name}"
        raise CheckpointError(file.path, rule, "none", tensor=tensor.name)
    return stored


def _stored_type_of(file: WeightFile, tensor: GgufTensor) -> StoredType:
    if tensor.kind in PLAIN:
        dtype = PLAIN[tensor.kind]
        return StoredType(dtype.name, 1, dtype.itemsize, dtype)
    if tensor.kind in OWN:
        name = OWN[tensor.kind]
        return StoredType(name, BLOCK_TYPES[name].weights, BLOCK_TYPES[name].nbytes, np.dtype("<f4"))
    try:
        import gguf
    except ImportError:
        rule = f"must be F32, F16, BF16, {', '.join(OWN.values())}; for others: {pip_install('unforgotten[gguf]')}"
        raise CheckpointError(file.path, rule, f"type {tensor.kind}", tensor=tensor.name) from None
    try:
        kind = gguf.GGMLQuantizationType(tensor.kind)
        weights, nbytes = gguf.GGML_QUANT_SIZES[kind]
        gguf.quants.dequantize(np.zeros((1, nbytes), np.uint8), kind)
    except UNDECODED:
        rule = "must have a type that gguf decodes"
        raise CheckpointError(file.path, rule, f"type {tensor.kind}", tensor=tensor.name) from None
    return StoredType(kind.name, weights, nbytes, np.dtype("<f4"))


def decode_blocks(stored: StoredType, blocks: NDArray[np.uint8]) -> NDArray[Any]:
    """Return the values of whole blocks, flat; what is not finite stays so."""
    if stored.weights == 1:
        return blocks.reshape(-1).view(stored.dtype)
    with np.errstate(all="ignore"):
        if stored.name in BLOCK_TYPES:
            return BLOCK_TYPES[stored.name].decode(blocks).values.reshape(-1)
        import gguf

        kind = gguf.GGMLQuantizationType[stored.name]
        return np.asarray(gguf.quants.dequantize(blocks, kind), np.float32).reshape(-1)


def _check_cover(
    file: WeightFile, tensors: tuple[GgufTensor, ...], types: Mapping[str, StoredType], data: int, alignment: int
) -> None:
    """Check that each tensor begins at the first aligned place after the one before it, as ggml itself demands."""
    position, room = 0, file.size - data
    for tensor in sorted(tensors, key=lambda t: (t.offset, math.prod(t.shape))):
        stored = types[tensor.name]
        nbytes = math.prod(tensor.shape) // stored.weights * stored.nbytes
        begin = -(-position // alignment) * alignment
        if tensor.offset != begin:
            fault = "overlap" if tensor.offset < begin else "hole"
            rule = f"must begin at {begin}, after the tensor before it"
            raise CheckpointError(file.path, rule, f"{tensor.offset} ({fault})", tensor=tensor.name)
        position = begin + nbytes
        if position > room:
            rule = f"must end within the {max(room, 0)} data bytes (a truncated file?)"
            raise CheckpointError(file.path, rule, f"end {position}", tensor=tensor.name)
    if room > -(-position // alignment) * alignment:
        rule = f"must end with its last tensor, at data byte {position}"
        raise CheckpointError(file.path, rule, room)
