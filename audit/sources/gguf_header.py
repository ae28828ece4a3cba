"""The header of a GGUF file: `"GGUF" | u32 version | u64 tensors | u64 fields | fields | tensor infos | padding | bytes`.

Everything is little-endian. Of the fields only the alignment, the number of parts and the architecture are kept; the
others are stepped over. Every count is held against what the file can hold before it is believed.

    header = read_gguf_header(open_file(Path("model.gguf")))
    header.tensors[0].shape
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.files import WeightFile
from unforgotten.audit.sources.safetensors_header import MAX_COUNT

MAGIC = b"GGUF"
VERSIONS = (2, 3)
WINDOW = 1 << 20
MAX_HEADER_BYTES = 1 << 28
MAX_ITEMS = 1 << 22  # strings and fields; the largest vocabularies have 2^18 tokens and as many merges
MAX_NAME_BYTES = 1024
MAX_AXES = 4  # of ggml
MAX_DEPTH = 4  # of arrays in arrays
STRING, ARRAY = 8, 9
SCALARS: Mapping[int, int] = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Type of a field -> its bytes."""
UNSIGNED = (0, 2, 4, 10)
ALIGNMENT, SPLITS = "general.alignment", "split.count"
ARCHITECTURE = "general.architecture"


@dataclass(frozen=True)
class GgufTensor:
    """One entry of the table: its type by number, its shape row-major, and its offset into the data."""

    name: str
    kind: int
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """The table of tensors, where their bytes begin, to what they are aligned, and the architecture, empty if unsaid."""

    tensors: tuple[GgufTensor, ...]
    data: int
    alignment: int
    architecture: str = ""


class _Cursor:
    """Reads forward through the header, a window at a time."""

    def __init__(self, file: WeightFile) -> None:
        self.file = file
        self.at = 0
        self.items = 0
        self._window, self._start = b"", 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > min(self.file.size, MAX_HEADER_BYTES):
            rule = f"must have a header of at most {min(self.file.size, MAX_HEADER_BYTES)} bytes"
            raise CheckpointError(self.file.path, f"{rule} (a truncated file?)", end)
        if end > self._start + len(self._window) or self.at < self._start:
            size = min(max(WINDOW, count), self.file.size - self.at)
            self._window, self._start = self.file.read(self.at, size).tobytes(), self.at
        begin = self.at - self._start
        self.at = end
        return self._window[begin : begin + count]

    def skip(self, count: int) -> None:
        """Step over bytes without reading them."""
        if self.at + count > min(self.file.size, MAX_HEADER_BYTES):
            self.take(count)
        self.at += count

    def number(self, nbytes: int) -> int:
        return int.from_bytes(self.take(nbytes), "little")

    def count_items(self, count: int, what: str) -> None:
        self.items += count
        if self.items > MAX_ITEMS:
            rule = f"must hold at most {MAX_ITEMS} fields, strings and tensors"
            raise CheckpointError(self.file.path, rule, f"{count} more {what}")

    def text(self) -> str:
        length = self.number(8)
        if length > MAX_NAME_BYTES:
            rule = f"must have names of at most {MAX_NAME_BYTES} bytes"
            raise CheckpointError(self.file.path, rule, length)
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(self.file.path, "must have names in UTF-8", error) from None


def read_gguf_header(file: WeightFile) -> GgufHeader:
    """Read the table of tensors.

    Raises:
        CheckpointError: it is no GGUF of version 2 or 3, one part of several, cut, or breaks a rule of the format.
    """
    cursor = _Cursor(file)
    magic = cursor.take(len(MAGIC)) if file.size >= len(MAGIC) else b""
    if magic != MAGIC:
        raise CheckpointError(file.path, f"must begin with {MAGIC!r}", magic)
    version = cursor.number(4)
    turned = int.from_bytes(version.to_bytes(4, "little"), "big")
    if turned in VERSIONS:
        rule = "must be little-endian (convert it with gguf_convert_endian.py of llama.cpp)"
        raise CheckpointError(file.path, rule, f"a big-endian file of version {turned}")
    if version not in VERSIONS:
        raise CheckpointError(file.path, f"must be GGUF of version {VERSIONS}", version)
    tensors, fields = cursor.number(8), cursor.number(8)
    cursor.count_items(fields, "fields")
    cursor.count_items(tensors, "tensors")
    kept, architecture = _fields(cursor, fields)
    alignment = _alignment(file, kept.get(ALIGNMENT, 32))
    if kept.get(SPLITS, 1) not in (0, 1):
        rule = "must be one whole file (merge the parts with llama-gguf-split)"
        raise CheckpointError(file.path, rule, f"a part of {kept[SPLITS]}")
    table: dict[str, GgufTensor] = {}
    for _ in range(tensors):
        tensor = _tensor(cursor)
        if tensor.name in table:
            raise CheckpointError(file.path, "must be there once", "twice", tensor=tensor.name)
        table[tensor.name] = tensor
    return GgufHeader(tuple(table.values()), -(-cursor.at // alignment) * alignment, alignment, architecture)


def _alignment(file: WeightFile, value: int | None) -> int:
    if value is None or not 8 <= value <= WINDOW or value & (value - 1):
        raise CheckpointError(file.path, f"must have a power of two in 8 … {WINDOW} for {ALIGNMENT}", value)
    return value


def _fields(cursor: _Cursor, count: int) -> tuple[dict[str, int | None], str]:
    """Return the unsigned fields that are kept, None for another type of such a field; and the architecture."""
    kept: dict[str, int | None] = {}
    architecture = ""
    seen: set[str] = set()
    for _ in range(count):
        key, kind = cursor.text(), cursor.number(4)
        if key in seen:
            raise CheckpointError(cursor.file.path, "must have every field once", f"{key!r} twice")
        seen.add(key)
        if key in (ALIGNMENT, SPLITS) and kind in UNSIGNED:
            kept[key] = cursor.number(SCALARS[kind])
            continue
        if key == ARCHITECTURE and kind == STRING:
            architecture = cursor.text()
            continue
        if key in (ALIGNMENT, SPLITS):
            kept[key] = None
        _skip_value(cursor, kind, MAX_DEPTH)
    return kept, architecture


def _skip_value(cursor: _Cursor, kind: int, depth: int) -> None:
    if kind in SCALARS:
        cursor.skip(SCALARS[kind])
    elif kind == STRING:
        cursor.skip(cursor.number(8))
    elif kind == ARRAY and depth:
        inner, count = cursor.number(4), cursor.number(8)
        if inner in SCALARS:
            cursor.skip(SCALARS[inner] * count)
            return
        cursor.count_items(count, "elements of an array")
        for _ in range(count):
            _skip_value(cursor, inner, depth - 1)
    else:
        rule = f"must have fields of a known type, arrays at most {MAX_DEPTH} deep"
        raise CheckpointError(cursor.file.path, rule, f"type {kind}")


def _tensor(cursor: _Cursor) -> GgufTensor:
    name, axes = cursor.text(), cursor.number(4)
    if axes > MAX_AXES:
        rule = f"must have at most {MAX_AXES} axes"
        raise CheckpointError(cursor.file.path, rule, axes, tensor=name)
    shape = tuple(cursor.number(8) for _ in range(axes))[::-1]
    kind, offset = cursor.number(4), cursor.number(8)
    if max((*shape, offset)) > MAX_COUNT or math.prod(n for n in shape if n) > MAX_COUNT // 8:
        rule = f"must have sizes that multiply to at most {MAX_COUNT} bytes"
        raise CheckpointError(cursor.file.path, rule, list(shape), tensor=name)
    return GgufTensor(name, kind, shape, offset)
