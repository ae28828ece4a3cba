"""GPTQ and AWQ: int32 words of codes, a scale and a zero point for every group of inputs; weights as (in, out)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.codes.layer import FLOAT_DTYPES, INT32, CodedWeights, Layer, Parts, group_of, only, unpack
from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.quantization import Scheme

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of an int32 holds output AWQ_ORDER[i] of its eight


def gptq(scheme: Scheme, checkpoint: Checkpoint, name: str) -> Layer:
    """Return a layer of `qweight` (in/k, out), k = 32/bits codes a word; value = scale (q - zero), zeros less one."""
    parts, per_word = Parts(checkpoint, name), 32 // scheme.bits
    parts.take(".qweight", only(INT32), (None, None))
    words, outs = parts.shape(".qweight")
    ins = words * per_word
    groups = 1 if scheme.group_size < 0 else -(-ins // scheme.group_size)
    parts.take(".scales", FLOAT_DTYPES, (groups, outs))
    parts.take(".qzeros", only(INT32), (groups, -(-outs // per_word)))
    group = group_of(scheme, parts, ".g_idx", ins, groups)

    def decode(start: int, stop: int) -> CodedWeights:
        packed = checkpoint.read_rows(name + ".qweight", start, stop)
        turned = unpack(packed.reshape(-1, 1), scheme.bits, per_word)
        codes = turned.reshape(stop - start, outs, per_word).swapaxes(1, 2).reshape(-1, outs)
        zeros = unpack(parts.read(".qzeros"), scheme.bits, outs).astype(np.float32)
        zeros += np.float32(scheme.zero_shift)
        g = group[start * per_word : stop * per_word]
        return CodedWeights(codes, parts.float32(".scales")[g] * (codes.astype(np.float32) - zeros[g]))

    return parts.layer(".qweight", (ins, outs), words, per_word * outs, decode)


def awq(scheme: Scheme, checkpoint: Checkpoint, name: str) -> Layer:
    """Return a layer of `qweight` (in, out/8), 8 outputs a word in AWQ_ORDER; value = scale (q - zero)."""
    parts = Parts(checkpoint, name)
    parts.take(".qweight", only(INT32), (None, None))
    ins, words = parts.shape(".qweight")
    outs = words * len(AWQ_ORDER)
    groups = 1 if scheme.group_size < 0 else -(-ins // scheme.group_size)
    parts.take(".scales", FLOAT_DTYPES, (groups, outs))
    parts.take(".qzeros", only(INT32), (groups, words))
    group = group_of(scheme, parts, ".g_idx", ins, groups)

    def ordered(packed: NDArray[Any]) -> NDArray[np.uint8]:
        nibbles = unpack(packed, 4, outs).reshape(len(packed), words, 8)
        codes = np.empty_like(nibbles)
        codes[:, :, AWQ_ORDER] = nibbles
        return codes.reshape(len(packed), outs)

    def decode(start: int, stop: int) -> CodedWeights:
        codes, g = (ordered(checkpoint.read_rows(name + ".qweight", start, stop)), group[start:stop])
        zeros = ordered(parts.read(".qzeros")).astype(np.float32)
        return CodedWeights(codes, parts.float32(".scales")[g] * (codes.astype(np.float32) - zeros[g]))

    return parts.layer(".qweight", (ins, outs), ins, outs, decode)
