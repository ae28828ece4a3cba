"""bitsandbytes: flat blocks of 4-bit codes with an absmax each, and rows of LLM.int8."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.codes.layer import FLOAT_DTYPES, INT8, U8, CodedWeights, Layer, Parts, only
from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.hostile_json import parse_json_object
from unforgotten.audit.sources.quantization import Scheme

MAX_STATE_BYTES = 1 << 16


class _BlockState(NamedTuple):
    """What bitsandbytes keeps of a 4-bit tensor."""

    shape: tuple[int, ...]
    block_size: int
    nested_size: int
    offset: float


def bnb_4bit(scheme: Scheme, checkpoint: Checkpoint, name: str) -> Layer:
    """Return a layer in 4 bits, two codes a byte, high nibble first; value = table[code] * absmax of its flat block."""
    parts = Parts(checkpoint, name)
    state = _block_state(parts, ".weight.quant_state.bitsandbytes__" + scheme.detail)
    count = math.prod(state.shape)
    packed_bytes, blocks = -(-count // 2), -(-count // state.block_size)
    items = _storage_items(parts, packed_bytes)
    parts.take(".weight", FLOAT_DTYPES | only(U8), (items, 1), (items,), (1, items))
    parts.take(".weight.quant_map", FLOAT_DTYPES, (16,))
    parts.take(".weight.absmax", FLOAT_DTYPES | only(U8), (blocks,))
    absmax = _absmax(parts, state, blocks)
    half = state.block_size // 2

    def decode(start: int, stop: int) -> CodedWeights:
        begin, end = start * half, min(stop * half, packed_bytes)
        raw = _flat_bytes(checkpoint, name + ".weight", begin, end)
        codes = np.stack([raw >> 4, raw & 15], axis=1).reshape(-1)[: count - 2 * begin]
        scale = np.repeat(absmax[start:stop], state.block_size)[: codes.size]
        return CodedWeights(codes, parts.float32(".weight.quant_map")[codes] * scale)

    return parts.layer(".weight", state.shape, blocks, state.block_size, decode)


def _storage_items(parts: Parts, packed_bytes: int) -> int:
    """Return how many numbers of the storage dtype hold the bytes: `bnb_4bit_quant_storage` may be bfloat16, for FSDP."""
    size = parts.checkpoint.tensors[parts.name + ".weight"].dtype.itemsize if parts.has(".weight") else 1
    return -(-packed_bytes // size)


def _flat_bytes(checkpoint: Checkpoint, name: str, begin: int, end: int) -> NDArray[np.uint8]:
    """Return bytes begin … end - 1 of the codes, whatever dtype they are stored as."""
    size = checkpoint.tensors[name].dtype.itemsize
    first = begin // size
    stored = checkpoint.read_flat(name, first, -(-end // size))
    return np.ascontiguousarray(stored).view(np.uint8)[begin - first * size : end - first * size]


def _block_state(parts: Parts, ending: str) -> _BlockState:
    parts.take(ending, only(U8), (None,))
    if parts.shape(ending)[0] > MAX_STATE_BYTES:
        raise parts.refuse(ending, f"must have at most {MAX_STATE_BYTES} bytes", parts.shape(ending))
    path = parts.checkpoint.tensors[parts.name + ending].path
    found = parse_json_object(path, parts.read(ending).tobytes())
    shape, block = found.get("shape"), found.get("blocksize")
    if not (isinstance(shape, list) and 0 < len(shape) <= 8 and all(_is_size(n) for n in shape)):
        raise parts.refuse(ending, "must hold a shape of sizes >= 1", repr(shape))
    nested, offset = found.get("nested_blocksize", 1), found.get("nested_offset", 0.0)
    for key, value in (("blocksize", block), ("nested_blocksize", nested)):
        if not _is_size(value):
            raise parts.refuse(ending, f"must hold a {key} >= 1", repr(value))
    if not isinstance(block, int) or block % 2:
        raise parts.refuse(ending, "must hold an even blocksize", repr(block))
    if type(offset) not in (int, float) or not np.isfinite(float(offset)):  # type: ignore[arg-type]
        raise parts.refuse(ending, "must hold a finite nested_offset", repr(offset))
    return _BlockState(tuple(shape), block, int(nested), float(offset))  # type: ignore[call-overload, arg-type]


def _is_size(value: object) -> bool:
    return type(value) is int and 1 <= value < 2**31


def _absmax(parts: Parts, state: _BlockState, blocks: int) -> NDArray[Any]:
    stored = parts.read(".weight.absmax")
    if stored.dtype != U8:
        return stored.astype(np.float32)
    parts.take(".weight.nested_quant_map", FLOAT_DTYPES, (256,))
    parts.take(".weight.nested_absmax", FLOAT_DTYPES, (-(-blocks // state.nested_size),))
    scale = np.repeat(parts.float32(".weight.nested_absmax"), state.nested_size)[:blocks]
    return parts.float32(".weight.nested_quant_map")[stored] * scale + np.float32(state.offset)


def bnb_8bit(scheme: Scheme, checkpoint: Checkpoint, name: str) -> Layer:
    """Return a layer of LLM.int8, rows of int8; value = code * SCB / 127."""
    parts = Parts(checkpoint, name)
    parts.take(".weight", only(INT8), (None, None))
    outs, ins = parts.shape(".weight")
    parts.take(".SCB", FLOAT_DTYPES, (outs,))
    if parts.has(".weight_format"):
        parts.take(".weight_format", only(U8), ())
        if parts.read(".weight_format").item() != 0:
            raise parts.refuse(".weight_format", "must be 0, rows in order", "another")

    def decode(start: int, stop: int) -> CodedWeights:
        codes = checkpoint.read_rows(name + ".weight", start, stop)
        scale = parts.float32(".SCB")[start:stop, None] / np.float32(127)
        return CodedWeights(codes, codes.astype(np.float32) * scale)

    return parts.layer(".weight", (outs, ins), outs, ins, decode)
