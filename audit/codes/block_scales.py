"""Float8 with one scale a tile of rows and columns: DeepSeek's 128 x 128, and strategy "block" of compressed-tensors."""

from __future__ import annotations

import math
from functools import partial

import ml_dtypes
import numpy as np

from unforgotten.audit.codes.layer import FLOAT8, FLOAT_DTYPES, CodedWeights, Layer, Parts, only
from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.quantization import Scheme

SCALE_DTYPES = FLOAT_DTYPES | only(np.dtype(ml_dtypes.float8_e8m0fnu))


def _tiled(ending: str, scheme: Scheme, checkpoint: Checkpoint, name: str) -> Layer:
    """Return a layer of float8 weights; value = number * scale of its tile, also where the name says `scale_inv`."""
    parts, (high, wide) = Parts(checkpoint, name), scheme.tile
    parts.take(".weight", only(FLOAT8), (None, None))
    outs, ins = parts.shape(".weight")
    parts.take(ending, SCALE_DTYPES, (math.ceil(outs / high), math.ceil(ins / wide)))
    columns = np.arange(ins) // wide

    def decode(start: int, stop: int) -> CodedWeights:
        stored = checkpoint.read_rows(name + ".weight", start, stop)
        first = start // high
        scale = checkpoint.read_rows(name + ending, first, math.ceil(stop / high)).astype(np.float32)
        rows = np.arange(start, stop) // high - first
        return CodedWeights(stored.view(np.uint8), stored.astype(np.float32) * scale[rows][:, columns])

    return parts.layer(".weight", (outs, ins), outs, ins, decode)


fp8 = partial(_tiled, ".weight_scale_inv")
ct_block = partial(_tiled, ".weight_scale")
