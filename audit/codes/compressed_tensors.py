"""compressed-tensors: dense words, plain int8 or float8, and NVFP4; weights as (out, in)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.codes.layer import (
    FLOAT8,
    FLOAT_DTYPES,
    INT8,
    INT32,
    INT64,
    U8,
    CodedWeights,
    Layer,
    Parts,
    group_of,
    only,
    unpack,
)
from unforgotten.audit.codes.shard_scales import shard_count, shard_rows
from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.quantization import Scheme

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def packed(scheme: Scheme, checkpoint: Checkpoint, name: str) -> Layer:
    """Return a layer of dense codes in rows, stored with 2^(b-1) added; value = scale (code - zero)."""
    parts, bits, middle = Parts(checkpoint, name), scheme.bits, 1 << (scheme.bits - 1)
    parts.take(".weight_shape", only(INT32, INT64), (2,))
    outs, ins = (int(n) for n in parts.read(".weight_shape"))
    if outs < 1 or ins < 1:
        raise parts.refuse(".weight_shape", "must hold two sizes >= 1", [outs, ins])
    parts.take(".weight_packed", only(INT32), (outs, -(-ins * bits // 32)))
    scales = _scales(scheme, parts, outs, ins)
    has_zero = has_zero_points(scheme, parts)
    groups = parts.shape(".weight_scale")[1]
    if has_zero:
        whole = checkpoint.tensors[name + ".weight_zero_point"].dtype == INT8
        parts.take(".weight_zero_point", only(INT8, INT32), (outs if whole else -(-outs * bits // 32), groups))
        if scheme.symmetric:
            check_zero_points(parts, _zeros(parts, bits, outs))
    group = group_of(scheme, parts, ".weight_g_idx", ins, groups)

    def decode(start: int, stop: int) -> CodedWeights:
        codes = unpack(checkpoint.read_rows(name + ".weight_packed", start, stop), bits, ins)
        level = codes.astype(np.float32) - np.float32(middle)
        if has_zero:
            level -= _zeros(parts, bits, outs)[start:stop][:, group]
        return CodedWeights(codes, level * scales(start, stop)[:, group])

    return parts.layer(".weight_packed", (outs, ins), outs, ins, decode)


def _zeros(parts: Parts, bits: int, outs: int) -> NDArray[Any]:
    """Return zero points, float32 (out, groups): as int8 they are stored as they are, in words like the codes."""
    stored = parts.read(".weight_zero_point")
    if stored.dtype == INT8:
        return stored.astype(np.float32)
    return unpack(stored.T, bits, outs).T.astype(np.float32) - np.float32(1 << (bits - 1))


def has_zero_points(scheme: Scheme, parts: Parts) -> bool:
    """Return whether the layer stores zero points.

    Raises:
        CheckpointError: it stores none, and its configuration says that it is asymmetric.
    """
    found = parts.has(".weight_zero_point")
    if not found and scheme.symmetric is False:
        rule = "must be there where the configuration says symmetric: false"
        raise CheckpointError(parts.checkpoint.source, rule, "no such tensor", tensor=parts.name + ".weight_zero_point")
    return found


def check_zero_points(parts: Parts, zeros: NDArray[Any]) -> None:
    """Refuse zero points of a layer that is symmetric by its configuration: some loaders read them, others do not.

    Raises:
        CheckpointError: one is not 0.
    """
    if others := np.count_nonzero(zeros):
        rule = "must be 0 everywhere where the configuration says symmetric: true"
        raise parts.refuse(".weight_zero_point", rule, f"{others} others")


def _scales(scheme: Scheme, parts: Parts, outs: int, ins: int) -> Callable[[int, int], NDArray[Any]]:
    """Return the scales of rows, float32 (rows, groups)."""
    groups = 1 if scheme.group_size < 0 else -(-ins // scheme.group_size)
    parts.take(".weight_scale", FLOAT_DTYPES, (outs, groups))
    return lambda start, stop: parts.checkpoint.read_rows(parts.name + ".weight_scale", start, stop).astype(np.float32)


def plain(scheme: Scheme, checkpoint: Checkpoint, name: str) -> Layer:
    """Return a layer of int8 or float8 weights; value = scale (number - zero). A float8's code is its byte."""
    return _plain(scheme, checkpoint, name, ".weight_scale", only(INT8, FLOAT8))


def fp8_tensor(scheme: Scheme, checkpoint: Checkpoint, name: str) -> Layer:
    """Return a layer of float8 with one scale a tensor, part or row; value = number * scale, also if named `scale_inv`."""
    found = [ending for ending in (".weight_scale", ".weight_scale_inv") if name + ending in checkpoint.tensors]
    if len(found) > 1:
        raise Parts(checkpoint, name).refuse(found[0], f"must not be there with {name + found[1]!r}", "both")
    return _plain(scheme, checkpoint, name, found[0] if found else ".weight_scale", only(FLOAT8))


def _plain(scheme: Scheme, checkpoint: Checkpoint, name: str, ending: str, dtypes: frozenset[np.dtype[Any]]) -> Layer:
    parts = Parts(checkpoint, name)
    parts.take(".weight", dtypes, (None, None))
    outs, ins = parts.shape(".weight")
    groups = 1 if scheme.group_size < 0 else -(-ins // scheme.group_size)
    shards = shard_count(name) if groups == 1 else 1
    shapes = ((outs, groups), (outs,), (1,), (1, 1), ())
    parts.take(ending, FLOAT_DTYPES, *shapes, *([(shards,), (shards, 1)] if shards > 1 else []))
    scale = _columns(parts.float32(ending))
    if len(scale) not in (1, outs):
        scale = np.repeat(scale, shard_rows(parts, ending, outs), axis=0)
    scale = np.broadcast_to(scale, (outs, groups))
    zero: NDArray[Any] = np.zeros((1, 1), np.float32)
    if has_zero_points(scheme, parts):
        parts.take(".weight_zero_point", dtypes, *shapes)
        zero = _columns(parts.float32(".weight_zero_point"))
        if scheme.symmetric:
            check_zero_points(parts, zero)
    zero = np.broadcast_to(zero, (outs, groups))
    group = group_of(scheme, parts, ".weight_g_idx", ins, groups)

    def decode(start: int, stop: int) -> CodedWeights:
        stored = checkpoint.read_rows(name + ".weight", start, stop)
        level = stored.astype(np.float32) - zero[start:stop, group]
        return CodedWeights(stored.view(np.uint8), level * scale[start:stop, group])

    return parts.layer(".weight", (outs, ins), outs, ins, decode)


def _columns(stored: NDArray[Any]) -> NDArray[Any]:
    return stored if stored.ndim == 2 else stored.reshape(-1, 1)


def nvfp4(scheme: Scheme, checkpoint: Checkpoint, name: str) -> Layer:
    """Return a layer of E2M1 codes, low nibble first; value = table[code] * (scale / global scale)."""
    parts = Parts(checkpoint, name)
    parts.take(".weight_packed", only(U8), (None, None))
    outs, width = parts.shape(".weight_packed")
    groups = -(-2 * width // 16)
    parts.take(".weight_scale", only(FLOAT8), (outs, groups))
    parts.take(".weight_global_scale", FLOAT_DTYPES, (1,), ())
    group = np.arange(2 * width) // 16

    def decode(start: int, stop: int) -> CodedWeights:
        raw = checkpoint.read_rows(name + ".weight_packed", start, stop)
        codes = np.stack([raw & 15, raw >> 4], axis=2).reshape(stop - start, 2 * width)
        scale = checkpoint.read_rows(name + ".weight_scale", start, stop).astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):  # found by name as not finite
            scale = scale / parts.float32(".weight_global_scale").reshape(1, 1)
            return CodedWeights(codes, E2M1[codes] * scale[:, group])

    return parts.layer(".weight_packed", (outs, 2 * width), outs, 2 * width, decode)
