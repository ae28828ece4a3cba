"""How GPTQ, AWQ, bitsandbytes and compressed-tensors store a layer: the parts, the packing, and what a code means.

A layer is read in units that can be decoded alone: packed rows, rows, or blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.artefact_schemes import Scheme
from unforgotten.audit.checkpoints import Checkpoint
from unforgotten.audit.errors import CheckpointError
from unforgotten.audit.headers import FLOATS
from unforgotten.audit.jsons import parse_json_object

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of an int32 holds output AWQ_ORDER[i] of its eight
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
MAX_STATE_BYTES = 1 << 16
FLOAT_DTYPES = frozenset(FLOATS.values())
INT32, INT8, U8 = np.dtype("<i4"), np.dtype("i1"), np.dtype("u1")


class Piece(NamedTuple):
    """Codes as they are stored, and their values in float32, of one shape."""

    codes: NDArray[Any]
    values: NDArray[Any]


@dataclass(frozen=True)
class Layer:
    """One quantized layer.

    Attributes:
        name: without the ending of its parts.
        path: the file, for messages.
        shape: of the weights, as the layout orders them.
        parts: the names of its tensors.
        units: how many units there are.
        unit_weights: weights in one.
        piece: decodes units start … stop - 1.
    """

    name: str
    path: Path
    shape: tuple[int, ...]
    parts: frozenset[str]
    units: int
    unit_weights: int
    piece: Callable[[int, int], Piece]


class Layout(NamedTuple):
    """The ending of the tensor that marks a layer, and what opens the layer of a name."""

    mark: str
    open: Callable[[Scheme, Checkpoint, str], Layer]


class _Parts:
    """The tensors of one layer, checked as they are taken."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self.checkpoint, self.name = checkpoint, name
        self.taken: dict[str, str] = {}

    def has(self, ending: str) -> bool:
        return self.name + ending in self.checkpoint.tensors

    def take(
        self, ending: str, dtypes: frozenset[np.dtype[Any]], *shapes: tuple[int | None, ...]
    ) -> str:
        """The name of a part whose dtype and shape are among these; None fits any size."""
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
            raise CheckpointError(
                info.path, f"must have the shape {wanted}", list(info.shape), tensor=full
            )
        if 0 in info.shape:
            raise CheckpointError(info.path, "must hold a weight", list(info.shape), tensor=full)
        self.taken[ending] = full
        return full

    def shape(self, ending: str) -> tuple[int, ...]:
        return self.checkpoint.tensors[self.name + ending].shape

    def read(self, ending: str) -> NDArray[Any]:
        return self.checkpoint.read(self.name + ending)

    def float32(self, ending: str) -> NDArray[Any]:
        return self.read(ending).astype(np.float32)

    def refuse(self, ending: str, rule: str, got: object) -> CheckpointError:
        full = self.name + ending
        return CheckpointError(self.checkpoint.tensors[full].path, rule, got, tensor=full)

    def layer(
        self, mark: str, shape: tuple[int, ...], units: int, unit_weights: int,
        piece: Callable[[int, int], Piece],
    ) -> Layer:  # fmt: skip
        path = self.checkpoint.tensors[self.name + mark].path
        parts = frozenset(self.taken.values())
        return Layer(self.name, path, shape, parts, units, unit_weights, piece)


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        w in (None, n) for n, w in zip(shape, wanted, strict=True)
    )


def unpack(words: NDArray[Any], bits: int, count: int) -> NDArray[np.uint8]:
    """`count` codes of a row of 32-bit words, lowest bits first, also across words.

    Args:
        words: int32 (rows, n).
        bits: of a code, 1 … 8.
        count: codes in a row, at most 32 n / bits.
    """
    raw = np.ascontiguousarray(words).view(np.uint8)
    flat = np.unpackbits(raw, axis=1, bitorder="little", count=count * bits)
    powers = (1 << np.arange(bits)).astype(np.uint8)
    return (flat.reshape(len(words), count, bits) * powers).sum(axis=2, dtype=np.uint8)


def _only(*dtypes: np.dtype[Any]) -> frozenset[np.dtype[Any]]:
    return frozenset(dtypes)


def _gptq(scheme: Scheme, checkpoint: Checkpoint, name: str) -> Layer:
    """qweight (in/k, out) holds k = 32/bits inputs a word; value = scale (q - zero), stored zeros are one less."""
    parts, per_word = _Parts(checkpoint, name), 32 // scheme.bits
    parts.take(".qweight", _only(INT32), (None, None))
    words, outs = parts.shape(".qweight")
    ins = words * per_word
    groups = 1 if scheme.group_size < 0 else -(-ins // scheme.group_size)
    parts.take(".scales", FLOAT_DTYPES, (groups, outs))
    parts.take(".qzeros", _only(INT32), (groups, -(-outs // per_word)))
    group_of = _group_of(scheme, parts, ".g_idx", ins, groups)

    def piece(start: int, stop: int) -> Piece:
        packed = checkpoint.read_rows(name + ".qweight", start, stop)
        turned = unpack(packed.reshape(-1, 1), scheme.bits, per_word)
        codes = turned.reshape(stop - start, outs, per_word).swapaxes(1, 2).reshape(-1, outs)
        zeros = unpack(parts.read(".qzeros"), scheme.bits, outs).astype(np.float32)
        zeros += np.float32(scheme.zero_shift)
        g = group_of[start * per_word : stop * per_word]
        return Piece(codes, parts.float32(".scales")[g] * (codes.astype(np.float32) - zeros[g]))

    return parts.layer(".qweight", (ins, outs), words, per_word * outs, piece)


def _group_of(
    scheme: Scheme, parts: _Parts, ending: str, ins: int, groups: int
) -> NDArray[np.intp]:
    """The group of every input: stored, or in order."""
    if not parts.has(ending):
        size = ins if scheme.group_size < 0 else scheme.group_size
        return np.arange(ins, dtype=np.intp) // max(1, size)
    parts.take(ending, _only(INT32, np.dtype("<i8")), (ins,))
    stored = parts.read(ending)
    bad = np.flatnonzero((stored < 0) | (stored >= groups))
    if bad.size:
        raise parts.refuse(ending, f"must hold groups in 0 … {groups - 1}", int(stored[bad[0]]))
    return stored.astype(np.intp)


def _awq(scheme: Scheme, checkpoint: Checkpoint, name: str) -> Layer:
    """qweight (in, out/8) holds 8 outputs a word in AWQ_ORDER; value = scale (q - zero)."""
    parts = _Parts(checkpoint, name)
    parts.take(".qweight", _only(INT32), (None, None))
    ins, words = parts.shape(".qweight")
    outs = words * len(AWQ_ORDER)
    groups = 1 if scheme.group_size < 0 else -(-ins // scheme.group_size)
    parts.take(".scales", FLOAT_DTYPES, (groups, outs))
    parts.take(".qzeros", _only(INT32), (groups, words))
    group_of = _group_of(scheme, parts, ".g_idx", ins, groups)

    def ordered(packed: NDArray[Any]) -> NDArray[np.uint8]:
        nibbles = unpack(packed, 4, outs).reshape(len(packed), words, 8)
        codes = np.empty_like(nibbles)
        codes[:, :, AWQ_ORDER] = nibbles
        return codes.reshape(len(packed), outs)

    def piece(start: int, stop: int) -> Piece:
        codes, g = ordered(checkpoint.read_rows(name + ".qweight", start, stop)), group_of[start:stop]
        zeros = ordered(parts.read(".qzeros")).astype(np.float32)
        return Piece(codes, parts.float32(".scales")[g] * (codes.astype(np.float32) - zeros[g]))

    return parts.layer(".qweight", (ins, outs), ins, outs, piece)


class _BlockState(NamedTuple):
    """What bitsandbytes keeps of a 4-bit tensor."""

    shape: tuple[int, ...]
    block_size: int
    nested_size: int
    offset: float


def _bnb_4bit(scheme: Scheme, checkpoint: Checkpoint, name: str) -> Layer:
    """Flat blocks, two codes a byte, the first in the high nibble; value = table[code] * absmax of the block."""
    parts = _Parts(checkpoint, name)
    state = _block_state(parts, ".weight.quant_state.bitsandbytes__" + scheme.detail)
    count = int(np.prod(state.shape, dtype=object))
    packed_bytes, blocks = -(-count // 2), -(-count // state.block_size)
    parts.take(".weight", _only(U8), (packed_bytes, 1), (packed_bytes,), (1, packed_bytes))
    parts.take(".weight.quant_map", FLOAT_DTYPES, (16,))
    parts.take(".weight.absmax", FLOAT_DTYPES | _only(U8), (blocks,))
    absmax = _absmax(parts, state, blocks)
    half = state.block_size // 2

    def piece(start: int, stop: int) -> Piece:
        begin, end = start * half, min(stop * half, packed_bytes)
        raw = _flat_bytes(checkpoint, name + ".weight", begin, end)
        codes = np.stack([raw >> 4, raw & 15], axis=1).reshape(-1)[: count - 2 * begin]
        scale = np.repeat(absmax[start:stop], state.block_size)[: codes.size]
        return Piece(codes, parts.float32(".weight.quant_map")[codes] * scale)

    return parts.layer(".weight", state.shape, blocks, state.block_size, piece)


def _flat_bytes(checkpoint: Checkpoint, name: str, begin: int, end: int) -> NDArray[Any]:
    if checkpoint.tensors[name].shape[0] == 1:
        return checkpoint.read(name).reshape(-1)[begin:end]
    return checkpoint.read_rows(name, begin, end).reshape(-1)


def _block_state(parts: _Parts, ending: str) -> _BlockState:
    parts.take(ending, _only(U8), (None,))
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


def _absmax(parts: _Parts, state: _BlockState, blocks: int) -> NDArray[Any]:
    stored = parts.read(".weight.absmax")
    if stored.dtype != U8:
        return stored.astype(np.float32)
    parts.take(".weight.nested_quant_map", FLOAT_DTYPES, (256,))
    parts.take(".weight.nested_absmax", FLOAT_DTYPES, (-(-blocks // state.nested_size),))
    scale = np.repeat(parts.float32(".weight.nested_absmax"), state.nested_size)[:blocks]
    return parts.float32(".weight.nested_quant_map")[stored] * scale + np.float32(state.offset)


def _bnb_8bit(scheme: Scheme, checkpoint: Checkpoint, name: str) -> Layer:
    """LLM.int8: rows of int8; value = code * SCB / 127."""
    parts = _Parts(checkpoint, name)
    parts.take(".weight", _only(INT8), (None, None))
    outs, ins = parts.shape(".weight")
    parts.take(".SCB", FLOAT_DTYPES, (outs,))
    if parts.has(".weight_format"):
        parts.take(".weight_format", _only(U8), ())
        if parts.read(".weight_format").item() != 0:
            raise parts.refuse(".weight_format", "must be 0, rows in order", "another")

    def piece(start: int, stop: int) -> Piece:
        codes = checkpoint.read_rows(name + ".weight", start, stop)
        scale = parts.float32(".SCB")[start:stop, None] / np.float32(127)
        return Piece(codes, codes.astype(np.float32) * scale)

    return parts.layer(".weight", (outs, ins), outs, ins, piece)


def _ct_packed(scheme: Scheme, checkpoint: Checkpoint, name: str) -> Layer:
    """Rows of dense codes, stored with 2^(b-1) added; value = scale (code - zero)."""
    parts, bits, middle = _Parts(checkpoint, name), scheme.bits, 1 << (scheme.bits - 1)
    parts.take(".weight_shape", _only(INT32, np.dtype("<i8")), (2,))
    outs, ins = (int(n) for n in parts.read(".weight_shape"))
    if outs < 1 or ins < 1:
        raise parts.refuse(".weight_shape", "must hold two sizes >= 1", [outs, ins])
    parts.take(".weight_packed", _only(INT32), (outs, -(-ins * bits // 32)))
    scales = _ct_scales(scheme, parts, outs, ins)
    has_zero = parts.has(".weight_zero_point")
    if has_zero:
        words = -(-outs * bits // 32)
        parts.take(".weight_zero_point", _only(INT32), (words, parts.shape(".weight_scale")[1]))
    groups = parts.shape(".weight_scale")[1]
    group_of = _group_of(scheme, parts, ".weight_g_idx", ins, groups)

    def piece(start: int, stop: int) -> Piece:
        codes = unpack(checkpoint.read_rows(name + ".weight_packed", start, stop), bits, ins)
        level = codes.astype(np.float32) - np.float32(middle)
        if has_zero:
            zeros = unpack(parts.read(".weight_zero_point").T, bits, outs).T[start:stop]
            level -= (zeros.astype(np.float32) - np.float32(middle))[:, group_of]
        return Piece(codes, level * scales(start, stop)[:, group_of])

    return parts.layer(".weight_packed", (outs, ins), outs, ins, piece)


def _ct_scales(
    scheme: Scheme, parts: _Parts, outs: int, ins: int
) -> Callable[[int, int], NDArray[Any]]:
    """The scales of rows, float32 (rows, groups)."""
    groups = 1 if scheme.group_size < 0 else -(-ins // scheme.group_size)
    parts.take(".weight_scale", FLOAT_DTYPES, (outs, groups))
    return lambda start, stop: parts.checkpoint.read_rows(
        parts.name + ".weight_scale", start, stop
    ).astype(np.float32)


def _ct_plain(scheme: Scheme, checkpoint: Checkpoint, name: str) -> Layer:
    """int8 or float8 a weight; value = scale (number - zero). A float8's code is its byte."""
    parts = _Parts(checkpoint, name)
    dtypes = {np.dtype(d) for d in ("int8", "float8_e4m3fn")}
    parts.take(".weight", frozenset(dtypes), (None, None))
    outs, ins = parts.shape(".weight")
    groups = 1 if scheme.group_size < 0 else -(-ins // scheme.group_size)
    parts.take(".weight_scale", FLOAT_DTYPES, (outs, groups), (outs,), (1,), (1, 1), ())
    scale = np.broadcast_to(_columns(parts.float32(".weight_scale"), outs), (outs, groups))
    zero = np.zeros((1, 1), np.float32)
    if parts.has(".weight_zero_point"):
        parts.take(".weight_zero_point", frozenset(dtypes), (outs, groups), (outs,), (1,), (1, 1), ())
        zero = _columns(parts.float32(".weight_zero_point"), outs)
    zero = np.broadcast_to(zero, (outs, groups))
    group_of = _group_of(scheme, parts, ".weight_g_idx", ins, groups)

    def piece(start: int, stop: int) -> Piece:
        stored = checkpoint.read_rows(name + ".weight", start, stop)
        level = stored.astype(np.float32) - zero[start:stop, group_of]
        return Piece(stored.view(np.uint8), level * scale[start:stop, group_of])

    return parts.layer(".weight", (outs, ins), outs, ins, piece)


def _columns(stored: NDArray[Any], outs: int) -> NDArray[Any]:
    return stored if stored.ndim == 2 else stored.reshape(-1, 1)


def _ct_nvfp4(scheme: Scheme, checkpoint: Checkpoint, name: str) -> Layer:
    """E2M1 codes, two a byte, the first in the low nibble; value = table[code] * (scale / global scale)."""
    parts = _Parts(checkpoint, name)
    parts.take(".weight_packed", _only(U8), (None, None))
    outs, width = parts.shape(".weight_packed")
    groups = -(-2 * width // 16)
    parts.take(".weight_scale", _only(np.dtype("float8_e4m3fn")), (outs, groups))
    parts.take(".weight_global_scale", FLOAT_DTYPES, (1,), ())
    group_of = np.arange(2 * width) // 16

    def piece(start: int, stop: int) -> Piece:
        raw = checkpoint.read_rows(name + ".weight_packed", start, stop)
        codes = np.stack([raw & 15, raw >> 4], axis=2).reshape(stop - start, 2 * width)
        scale = checkpoint.read_rows(name + ".weight_scale", start, stop).astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):  # found by name as not finite
            scale = scale / parts.float32(".weight_global_scale").reshape(1, 1)
            return Piece(codes, E2M1[codes] * scale[:, group_of])

    return parts.layer(".weight_packed", (outs, 2 * width), outs, 2 * width, piece)


LAYOUTS: Mapping[str, Layout] = {
    "gptq": Layout(".qweight", _gptq),
    "awq": Layout(".qweight", _awq),
    "bnb-4bit": Layout(".weight.absmax", _bnb_4bit),
    "bnb-8bit": Layout(".SCB", _bnb_8bit),
    "ct-packed": Layout(".weight_packed", _ct_packed),
    "ct-plain": Layout(".weight_scale", _ct_plain),
    "ct-nvfp4": Layout(".weight_packed", _ct_nvfp4),
}
"""By `Scheme.layout`."""
