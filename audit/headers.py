"""One safetensors file: its header, checked before a single weight is believed.

A file is `u64 little-endian header length | JSON header | tensor bytes`. The header maps each tensor to a dtype, a
shape and a pair of offsets into the bytes. Every file is taken as hostile: nothing outside it is ever read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import ml_dtypes
import numpy as np

FLOATS: Mapping[str, np.dtype[Any]] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}
BUFFERS: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"), "U8": np.dtype("u1"), "I8": np.dtype("i1"), "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"), "U32": np.dtype("<u4"), "I32": np.dtype("<i4"), "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
}  # fmt: skip
"""Masks and position buffers: they are compared, never quantized."""
DTYPES: Mapping[str, np.dtype[Any]] = {**FLOATS, **BUFFERS}
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
MAX_SHOWN = 120  # characters of a hostile value in a message


class CheckpointError(ValueError):
    """A checkpoint breaks a rule. The message is one line: file, tensor where there is one, rule and value."""

    def __init__(self, path: Path, rule: str, got: object, *, tensor: str | None = None) -> None:
        where = _one_line(str(path)) + (
            f": tensor {_short(repr(tensor))}" if tensor is not None else ""
        )
        super().__init__(f"{where} {rule}, got {_short(_one_line(str(got)))}")


def _one_line(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def _short(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `nbytes` bytes from `offset` of the file `path`, row-major."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, in the order of their names.

    Raises:
        CheckpointError: the file is missing or not a regular file; the header does not fit the file or is not a
            JSON object of tensors; a dtype is unknown; the offsets overlap, leave a hole, leave the file or
            contradict shape and dtype.
    """
    if not path.is_file():
        raise CheckpointError(path, "must be a file that exists", "none")
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(LENGTH_BYTES)
        if len(prefix) < LENGTH_BYTES:
            raise CheckpointError(path, "must begin with 8 bytes of header length", f"{size} bytes")
        length = int.from_bytes(prefix, "little")
        most = min(MAX_HEADER_BYTES, size - LENGTH_BYTES)
        if length > most:
            raise CheckpointError(path, f"must have a header of at most {most} bytes", length)
        entries = parse_json_object(path, file.read(length))
    entries.pop("__metadata__", None)
    start = LENGTH_BYTES + length
    spans = [_tensor_span(path, name, entry, start) for name, entry in sorted(entries.items())]
    _check_cover(path, spans, size - start)
    return {span.name: span.info for span in spans}


def parse_json_object(path: Path, text: bytes) -> dict[str, object]:
    """A JSON object without duplicate keys, at any depth.

    Raises:
        CheckpointError: `text` is anything else.
    """
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, "must hold valid JSON", error) from None
    if not isinstance(value, dict):
        raise CheckpointError(path, "must hold a JSON object", type(value).__name__)
    return value


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} twice")
        key.encode("utf-8")  # a lone surrogate could be written to no output
        found[key] = value
    return found


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
        raise CheckpointError(
            path, f"must have dtype {', '.join(DTYPES)}", repr(dtype), tensor=name
        )
    if not _are_counts(shape):
        raise CheckpointError(path, "must have a shape of integers >= 0", shape, tensor=name)
    if not (_are_counts(offsets) and len(offsets) == 2):
        raise CheckpointError(path, "must have two data_offsets >= 0", offsets, tensor=name)
    begin, end = offsets
    info = TensorInfo(path, DTYPES[dtype], tuple(shape), start + begin)
    if end - begin != info.nbytes:
        rule = f"must span {info.nbytes} bytes for {dtype} {shape}"
        raise CheckpointError(path, rule, f"data_offsets {offsets}", tensor=name)
    return _Span(name, info, begin, end)


def _are_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


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
        raise CheckpointError(
            path, f"must end with its last tensor, at data byte {position}", data_bytes
        )
