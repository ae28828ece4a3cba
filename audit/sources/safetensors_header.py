"""One safetensors file: its header, checked before a single weight is believed.

A file is `u64 little-endian header length | JSON header | tensor bytes`. The header maps each tensor to a dtype, a
shape and a pair of offsets into the bytes. Every file is taken as hostile: nothing outside it is ever read.

    read_header(open_file(Path("model.safetensors")))["model.norm.weight"].shape
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import ml_dtypes
import numpy as np

from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.files import WeightFile
from unforgotten.audit.sources.hostile_json import MAX_JSON_BYTES, parse_json_object

__all__ = ["DTYPES", "FLOATS", "CheckpointError", "TensorInfo", "read_header"]

FLOATS: Mapping[str, np.dtype[Any]] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}
BUFFERS: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
"""Masks, position buffers, and what a quantizer has stored: they are compared, never quantized again."""
PACKED: Mapping[str, int] = {"F4": 2}
"""Dtypes of several numbers a byte -> how many; they are read as bytes, the last axis as much shorter."""
DTYPES: Mapping[str, np.dtype[Any]] = {**FLOATS, **BUFFERS, **dict.fromkeys(PACKED, np.dtype("u1"))}
LENGTH_BYTES = 8
MAX_DIMS = 32  # of any tensor that numpy could hold in its first release
MAX_COUNT = 2**63 - 1  # bytes, offsets, weights
MAGICS: Mapping[bytes, str] = {
    b"PK\x03\x04": "a zip file, as torch.save writes its pickles",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"GGUF": "a GGUF file",
    b"\x1f\x8b": "a gzip file",
    b"<!DO": "an HTML page",
    b"<htm": "an HTML page",
    b"version http": "a Git LFS pointer, not the file",
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint.

    Attributes:
        path: the file that it comes from, for messages.
        dtype: dtype of the array that reading it gives.
        shape: shape of that array, row-major.
        offset: place of its first byte in the file; None where it is computed, as a merged or a decoded tensor is.
        stored: name of the stored type, where that is not `dtype`, as Q4_K.
    """

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int | None = None
    stored: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: WeightFile) -> dict[str, TensorInfo]:
    """Return the tensors of one safetensors file, in the order of their names.

    Raises:
        CheckpointError: the header does not fit the file or is not a JSON object of tensors; a dtype is unknown; the
            offsets overlap, leave a hole, leave the file or contradict shape and dtype.
    """
    path = file.path
    if file.size < LENGTH_BYTES:
        rule = "must begin with 8 bytes of header length"
        raise CheckpointError(path, rule, f"{file.size} bytes")
    start = file.read(0, min(file.size, 16)).tobytes()
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if start[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{":
        _refuse_disguised(path, start)
    most = min(MAX_JSON_BYTES, file.size - LENGTH_BYTES)
    if length > most:
        raise CheckpointError(path, f"must have a header of at most {most} bytes", length)
    entries = parse_json_object(path, file.read(LENGTH_BYTES, length).tobytes())
    entries.pop("__metadata__", None)
    data = LENGTH_BYTES + length
    spans = [_tensor_span(path, name, entry, data) for name, entry in sorted(entries.items())]
    _check_cover(path, spans, file.size - data)
    return {span.name: span.info for span in spans}


def _refuse_disguised(path: Path, start: bytes) -> None:
    for magic, what in MAGICS.items():
        if start.startswith(magic):
            raise CheckpointError(path, "must be safetensors (a pickle can run code)", what)


@dataclass(frozen=True)
class _Span:
    name: str
    info: TensorInfo
    begin: int
    end: int


def _tensor_span(path: Path, name: str, entry: object, start: int) -> _Span:
    if not isinstance(entry, dict):
        raise CheckpointError(path, "must have a JSON object", entry, tensor=name)
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(path, f"must have dtype {', '.join(DTYPES)}", repr(dtype), tensor=name)
    if not are_counts(shape) or len(shape) > MAX_DIMS:
        rule = f"must have a shape of at most {MAX_DIMS} integers >= 0"
        raise CheckpointError(path, rule, shown(shape), tensor=name)
    if not (are_counts(offsets) and len(offsets) == 2):
        raise CheckpointError(path, "must have two data_offsets >= 0", shown(offsets), tensor=name)
    begin, end = offsets
    info = TensorInfo(path, DTYPES[dtype], _stored_shape(path, name, dtype, shape), start + begin, _packed(dtype))
    if end - begin != info.nbytes:
        rule = f"must span {info.nbytes} bytes for {dtype} {shape}"
        raise CheckpointError(path, rule, f"data_offsets {offsets}", tensor=name)
    check_extent(path, name, info)
    return _Span(name, info, begin, end)


def _packed(dtype: str) -> str:
    return dtype if dtype in PACKED else ""


def _stored_shape(path: Path, name: str, dtype: str, shape: list[int]) -> tuple[int, ...]:
    """Return the shape of the bytes of a packed dtype, and of the numbers of any other."""
    if dtype not in PACKED:
        return tuple(shape)
    if not shape or shape[-1] % PACKED[dtype]:
        rule = f"must have a last axis of a multiple of {PACKED[dtype]} for {dtype}"
        raise CheckpointError(path, rule, shape, tensor=name)
    return (*shape[:-1], shape[-1] // PACKED[dtype])


def check_extent(path: Path, name: str, info: TensorInfo) -> None:
    """Refuse a shape that no array can have; a 0 in it hides nothing.

    Raises:
        CheckpointError: the sizes other than 0 multiply to more than MAX_COUNT bytes.
    """
    nbytes = math.prod(n for n in info.shape if n) * info.dtype.itemsize
    if nbytes > MAX_COUNT:
        rule = f"must have sizes that multiply to at most {MAX_COUNT} bytes"
        raise CheckpointError(path, rule, list(info.shape), tensor=name)


def are_counts(value: object) -> TypeGuard[list[int]]:
    """Return whether the value is a list of integers in 0 … MAX_COUNT."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n <= MAX_COUNT for n in value)


def shown(value: object) -> object:
    """Return the value for a message; a long list is cut before it is turned into text."""
    return f"{value[:MAX_DIMS]}… of {len(value)}" if _is_long(value) else value


def _is_long(value: object) -> TypeGuard[list[object]]:
    return isinstance(value, list) and len(value) > MAX_DIMS


def _check_cover(path: Path, spans: list[_Span], data_bytes: int) -> None:
    position = 0
    for span in sorted(spans, key=lambda s: (s.begin, s.end)):
        if span.end > data_bytes:
            rule = f"must end within the {data_bytes} data bytes (a truncated file?)"
            raise CheckpointError(path, rule, f"end {span.end}", tensor=span.name)
        if span.begin != position:
            fault = "overlap" if span.begin < position else "hole"
            rule = f"must begin where the tensor before it ends, at {position}"
            raise CheckpointError(path, rule, f"{span.begin} ({fault})", tensor=span.name)
        position = span.end
    if position != data_bytes:
        raise CheckpointError(path, f"must end with its last tensor, at data byte {position}", data_bytes)
