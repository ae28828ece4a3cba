"""Codes of all experts of a layer in one tensor of three axes: float8, and NVFP4 of ModelOpt. One layer an expert, `NAME[3]`.

    experts.gate_up_proj float8 (experts, rows, columns), gate_up_proj_scale_inv (experts, tiles, tiles)
    experts.gate_up_proj uint8 (experts, inputs / 2, out), gate_up_proj_weight_scale (experts, inputs / 16, out)

Which axis a scale runs along, and which one two codes of a byte do, is in the shapes, so that nothing need be known of the
order in which a model stores inputs and outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.codes.block_scales import SCALE_DTYPES
from unforgotten.audit.codes.compressed_tensors import E2M1
from unforgotten.audit.codes.float4 import NV_BLOCK
from unforgotten.audit.codes.layer import FLOAT8, FLOAT_DTYPES, U8, CodedWeights, Layer, Parts, only
from unforgotten.audit.codes.shard_scales import shard_count
from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.matching.experts import MAX_EXPERTS
from unforgotten.audit.sources.matching.kinds import EXPERTS
from unforgotten.audit.sources.quantization import Scheme

Decode = Callable[[int, int], CodedWeights]
SCALES: Mapping[str, tuple[str, ...]] = {
    "fp8": ("_scale_inv",),
    "fp8-tensor": ("_scale_inv", "_weight_scale", "_scale"),
    "ct-plain": ("_weight_scale", "_scale"),
    "ct-block": ("_weight_scale", "_scale"),
    "modelopt-nvfp4": ("_weight_scale",),
}
"""Layout of a checkpoint -> endings of the scales of fused experts."""
SECOND = "_weight_scale_2"
MARK = ""  # the codes have the name of the layer itself


def fused_layers(scheme: Scheme, checkpoint: Checkpoint) -> dict[str, Layer]:
    """Return the experts of every fused tensor of a checkpoint that has its scales beside it, by name.

    Raises:
        CheckpointError: a part has the wrong dtype or shape, or there are more than MAX_EXPERTS.
    """
    packed = scheme.layout == "modelopt-nvfp4"
    found: dict[str, Layer] = {}
    for name, ending in _fused(scheme, checkpoint, U8 if packed else FLOAT8):
        parts = Parts(checkpoint, name)
        parts.take(MARK, only(U8 if packed else FLOAT8), (None, None, None))
        if parts.shape(MARK)[0] > MAX_EXPERTS:
            raise parts.refuse(MARK, f"must hold at most {MAX_EXPERTS} experts", parts.shape(MARK)[0])
        for layer in _nvfp4(parts, ending) if packed else _float8(scheme, parts, ending):
            found[layer.name] = layer
    return found


def _fused(scheme: Scheme, checkpoint: Checkpoint, dtype: np.dtype[np.generic]) -> Iterator[tuple[str, str]]:
    """Yield each tensor of codes of many experts, and the ending of its scales."""
    for name, info in checkpoint.tensors.items():
        if (
            info.dtype == dtype
            and len(info.shape) == 3
            and EXPERTS.search(name.lower())
            and not name.endswith(".weight")
        ):
            ending = next((e for e in SCALES.get(scheme.layout, ()) if name + e in checkpoint.tensors), None)
            if ending is not None:
                yield name, ending


def _layers(parts: Parts, rows: int, columns: int, units: int, decode: Callable[[int], Decode]) -> Iterator[Layer]:
    """Yield a layer for each expert, from what decodes the expert of a number."""
    path, taken = parts.checkpoint.tensors[parts.name].path, frozenset(parts.taken.values())
    for e in range(parts.shape(MARK)[0]):
        yield Layer(f"{parts.name}[{e}]", path, (rows, columns), taken, units, rows * columns // units, decode(e))


def _stored(parts: Parts, e: int, start: int, stop: int) -> NDArray[np.generic]:
    """Read rows start … stop - 1 of one expert."""
    _, rows, columns = parts.shape(MARK)
    first = (e * rows + start) * columns
    flat = parts.checkpoint.read_flat(parts.name, first, first + (stop - start) * columns)
    return flat.reshape(stop - start, columns)


def _scale_of(parts: Parts, ending: str, e: int) -> NDArray[np.float32]:
    """Read the scales of one expert, float32 (rows, columns) of their own; one number stands for all."""
    shape = parts.shape(ending)
    if math.prod(shape) == 1:
        return parts.float32(ending).reshape(1, 1)
    own = parts.checkpoint.read_rows(parts.name + ending, e, e + 1).astype(np.float32)
    return own.reshape(own.shape[1:] if own.ndim == 3 else (1, 1))


def _float8(scheme: Scheme, parts: Parts, ending: str) -> Iterator[Layer]:
    """Yield experts of float8; value = number * scale of its tensor, expert, row, column, half or tile."""
    count, rows, columns = parts.shape(MARK)
    high, wide = scheme.tile
    halves = [2] if shard_count(parts.name) == 2 and rows % 2 == 0 else []
    if scheme.tile == (1, 1):
        shapes = [(count, n, 1) for n in (1, rows, *halves)] + [(count, 1, columns), (count,), (1,), ()]
    else:
        shapes = [(count, n, math.ceil(columns / wide)) for n in (math.ceil(rows / high), *halves)]
    parts.take(ending, SCALE_DTYPES, *shapes)
    stored = parts.shape(ending)
    own = stored[1:] if len(stored) == 3 else (1, 1)
    tiled = scheme.tile != (1, 1) and own[0] == math.ceil(rows / high)
    row = np.arange(rows) // (high if tiled else math.ceil(rows / own[0]))
    column = np.arange(columns) // (wide if scheme.tile != (1, 1) else math.ceil(columns / own[1]))

    def decode(e: int) -> Decode:
        def units(start: int, stop: int) -> CodedWeights:
            numbers, scale = _stored(parts, e, start, stop), _scale_of(parts, ending, e)
            values = numbers.astype(np.float32) * scale[row[start:stop]][:, column]
            return CodedWeights(numbers.view(np.uint8), values)

        return units

    return _layers(parts, rows, columns, rows, decode)


def _nvfp4(parts: Parts, ending: str) -> Iterator[Layer]:
    """Yield experts of E2M1 codes, low nibble first; value = table[code] * (scale * second scale).

    Two codes of a byte, and sixteen of a scale, lie along the inputs: along the last axis, or along the one before it.
    """
    count, rows, columns = parts.shape(MARK)
    along_rows, last = (count, -(-2 * rows // NV_BLOCK), columns), (count, rows, -(-2 * columns // NV_BLOCK))
    parts.take(ending, only(FLOAT8), along_rows, last)
    parts.take(SECOND, FLOAT_DTYPES, (count, 1, 1), (count,), (1,), ())
    down = parts.shape(ending) == along_rows

    def decode(e: int) -> Decode:
        def units(start: int, stop: int) -> CodedWeights:
            raw = _stored(parts, e, start, stop)
            pairs = np.stack([raw & 15, raw >> 4], axis=1 if down else 2)  # type: ignore[operator]
            codes = pairs.reshape(-1, columns) if down else pairs.reshape(-1, 2 * columns)
            scale = _scale_of(parts, ending, e)
            with np.errstate(over="ignore", invalid="ignore"):  # found by name as not finite
                scale = scale * _scale_of(parts, SECOND, e)
                if down:
                    spread = scale[np.arange(2 * start, 2 * stop) // NV_BLOCK]
                else:
                    spread = scale[start:stop][:, np.arange(2 * columns) // NV_BLOCK]
                return CodedWeights(codes, E2M1[codes] * spread)

        return units

    shape = (2 * rows, columns) if down else (rows, 2 * columns)
    return _layers(parts, *shape, rows, decode)
