"""Four-bit floats, E2M1: NVFP4 as ModelOpt stores it, and MXFP4 of gpt-oss with all experts in one tensor."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.codes.compressed_tensors import E2M1
from unforgotten.audit.codes.layer import FLOAT8, FLOAT_DTYPES, U8, CodedWeights, Layer, Parts, only
from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.quantization import Scheme

NV_BLOCK, MX_BLOCK = 16, 32
MX_BIAS = 127  # of an exponent in E8M0


def modelopt_nvfp4(scheme: Scheme, checkpoint: Checkpoint, name: str) -> Layer:
    """Return a layer of E2M1 codes, low nibble first; value = table[code] * (scale * second scale).

    compressed-tensors stores the reciprocal of the second scale, and divides.
    """
    parts = Parts(checkpoint, name)
    parts.take(".weight", only(U8), (None, None))
    outs, width = parts.shape(".weight")
    parts.take(".weight_scale", only(FLOAT8), (outs, -(-2 * width // NV_BLOCK)))
    parts.take(".weight_scale_2", FLOAT_DTYPES, (1,), ())
    group = np.arange(2 * width) // NV_BLOCK

    def decode(start: int, stop: int) -> CodedWeights:
        codes = _nibbles(checkpoint.read_rows(name + ".weight", start, stop)).reshape(stop - start, 2 * width)
        scale = checkpoint.read_rows(name + ".weight_scale", start, stop).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # found by name as not finite
            scale = scale * parts.float32(".weight_scale_2").reshape(1, 1)
            return CodedWeights(codes, E2M1[codes] * scale[:, group])

    return parts.layer(".weight", (outs, 2 * width), outs, 2 * width, decode)


def mxfp4(scheme: Scheme, checkpoint: Checkpoint, name: str) -> Layer:
    """Return a layer of blocks of 32 E2M1 codes, low nibble first; value = table[code] * 2^(scale - 127).

    Blocks are (experts, out, in / 32, 16) bytes, or (out, in / 32, 16) of a layer without experts.
    """
    parts = Parts(checkpoint, name)
    half = MX_BLOCK // 2
    parts.take("_blocks", only(U8), (None, None, None, half), (None, None, half))
    *rows, groups, _ = parts.shape("_blocks")
    parts.take("_scales", only(U8), (*rows, groups))
    columns = groups * MX_BLOCK

    def decode(start: int, stop: int) -> CodedWeights:
        raw = checkpoint.read_flat(name + "_blocks", start * groups * half, stop * groups * half)
        codes = _nibbles(raw).reshape(stop - start, columns)
        stored = checkpoint.read_flat(name + "_scales", start * groups, stop * groups)
        with np.errstate(over="ignore", invalid="ignore"):  # 255 stands for nan and is found as not finite
            scale = np.ldexp(np.float32(1), stored.astype(np.int32) - MX_BIAS)
            levels = E2M1[codes].reshape(-1, MX_BLOCK) * scale[:, None]
            return CodedWeights(codes, levels.reshape(stop - start, columns))

    return parts.layer("_blocks", (*rows, columns), math.prod(rows), columns, decode)


def _nibbles(raw: NDArray[Any]) -> NDArray[Any]:
    """Return the low and the high nibble of each byte, in this order along a last axis."""
    return np.stack([raw & 15, raw >> 4], axis=-1)
